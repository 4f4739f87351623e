package location_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // as the program has it

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/event/eventtest"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/location"
)

var (
	details = location.Details{Name: "Store 1", Timezone: "Europe/Berlin", Tags: []string{"north", "big"}, Channel: location.Channel{Type: "player"}}

	registered = location.Registered{
		CompanyID: "co_one", ExternalID: "store_001", UserID: 7, Name: "Store 1", Timezone: "Europe/Berlin", Tags: []string{"north", "big"}, Channel: location.Channel{Type: "player"},
	}
	changed = location.Changed{
		CompanyID: "co_one", ExternalID: "store_001", UserID: 7, Name: "Store One", Timezone: "UTC", Tags: []string{}, Channel: location.Channel{Type: "http", URL: "https://radio.example/in"},
	}
	removed  = location.Removed{CompanyID: "co_one", ExternalID: "store_001", UserID: 7}
	enrolled = enrolledAs("dvc_one")
	revoked  = location.DeviceRevoked{CompanyID: "co_one", ExternalID: "store_001", UserID: 7, DeviceID: "dvc_one"}
	rotated  = location.DeviceTokenRotated{CompanyID: "co_one", ExternalID: "store_001", UserID: 7, DeviceID: "dvc_one", Hash: "another hash"}
)

func enrolledAs(deviceID string) location.DeviceEnrolled {
	return location.DeviceEnrolled{CompanyID: "co_one", ExternalID: "store_001", UserID: 7, DeviceID: deviceID, Name: "till", Hash: "hash of " + deviceID}
}

func load(t require.TestingT, given ...event.Payload) location.Location {
	l, err := location.Load(eventtest.History(given...))
	require.NoError(t, err)
	return l
}

func TestRegister(t *testing.T) {
	t.Parallel()
	for name, given := range map[string][]event.Payload{
		"for the first time": nil,
		"after its removal":  {registered, changed, removed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := load(t, given...).Register("co_one", "store_001", 7, details)
			require.NoError(t, err)
			require.Equal(t, registered, got)
		})
	}
	for name, given := range map[string][]event.Payload{
		"taken":           {registered},
		"taken, changed":  {registered, changed},
		"taken once more": {registered, removed, registered},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := load(t, given...).Register("co_one", "store_001", 7, details)
			eventtest.Refused(t, err, fault.AlreadyExists, "externalId")
		})
	}
}

func TestRegisterFillsInDefaults(t *testing.T) {
	t.Parallel()
	got, err := location.Location{}.Register("co_one", "store_001", 7, location.Details{Name: " Store 1\n", Tags: []string{"b", "a", "b"}})
	require.NoError(t, err)
	require.Equal(t, location.Registered{
		CompanyID: "co_one", ExternalID: "store_001", UserID: 7, Name: "Store 1", Timezone: "UTC", Tags: []string{"b", "a"}, Channel: location.Channel{Type: "player"},
	}, got)
}

func TestChange(t *testing.T) {
	t.Parallel()
	asked := location.Details{Name: changed.Name, Timezone: changed.Timezone, Tags: changed.Tags, Channel: changed.Channel}
	for name, c := range map[string]struct {
		given []event.Payload
		to    location.Details
		want  []event.Payload
		code  fault.Code
	}{
		"to something else":        {given: []event.Payload{registered}, to: asked, want: []event.Payload{changed}},
		"to what it is":            {given: []event.Payload{registered}, to: details},
		"to what it became":        {given: []event.Payload{registered, changed}, to: asked},
		"to the same, by defaults": {given: []event.Payload{registered, changed}, to: location.Details{Name: " Store One ", Channel: changed.Channel}},
		"of one that never was":    {to: asked, code: fault.NotFound},
		"of one that was removed":  {given: []event.Payload{registered, removed}, to: asked, code: fault.NotFound},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := load(t, c.given...).Change(c.to)
			require.Equal(t, c.want, got)
			if c.code == "" {
				require.NoError(t, err)
				return
			}
			eventtest.Refused(t, err, c.code, "")
		})
	}
}

// An import is Register where the location is not there and Change where it is.
func TestAnImportThatIsRepeatedChangesNothing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.SampledFrom([]string{"a", "b", "c"})
		var history []event.Payload
		for range rapid.IntRange(1, 10).Draw(t, "imports") {
			if load(t, history...).Registered && rapid.IntRange(0, 3).Draw(t, "remove") == 0 {
				gone, err := load(t, history...).Remove()
				require.NoError(t, err)
				history = append(history, gone)
			}
			row := location.Details{Name: word.Draw(t, "name"), Timezone: rapid.SampledFrom([]string{"", "UTC", "Asia/Tokyo"}).Draw(t, "zone"), Tags: rapid.SliceOfN(word, 0, 4).Draw(t, "tags")}
			if l := load(t, history...); l.Registered {
				events, err := l.Change(row)
				require.NoError(t, err)
				history = append(history, events...)
			} else {
				made, err := l.Register("co_one", "store_001", 7, row)
				require.NoError(t, err)
				history = append(history, made)
			}
			l := load(t, history...)
			require.Equal(t, row.Normal(), l.Details)
			again, err := l.Change(row)
			require.NoError(t, err)
			require.Empty(t, again)
			again, err = l.Change(l.Details)
			require.NoError(t, err)
			require.Empty(t, again, "what is stored is normal already")
		}
	})
}

func TestRemove(t *testing.T) {
	t.Parallel()
	got, err := load(t, registered, changed).Remove()
	require.NoError(t, err)
	require.Equal(t, removed, got)

	for _, given := range [][]event.Payload{nil, {registered, removed}} {
		_, err = load(t, given...).Remove()
		eventtest.Refused(t, err, fault.NotFound, "")
	}
}

func TestEnrol(t *testing.T) {
	t.Parallel()
	got, err := load(t, registered).Enrol("dvc_one", "till", "hash of dvc_one")
	require.NoError(t, err)
	require.Equal(t, enrolled, got)

	_, err = load(t, registered).Enrol("dvc_one", strings.Repeat("é", 201), "hash")
	eventtest.Refused(t, err, fault.OutOfRange, "name")

	for _, given := range [][]event.Payload{nil, {registered, removed}} {
		_, err = load(t, given...).Enrol("dvc_one", "till", "hash")
		eventtest.Refused(t, err, fault.NotFound, "")
	}
}

func TestALocationHasManyDevicesAndNoMore(t *testing.T) {
	t.Parallel()
	history := []event.Payload{registered}
	for i := range location.MaxDevices {
		got, err := load(t, history...).Enrol(fmt.Sprintf("dvc_%d", i), "", "hash")
		require.NoError(t, err)
		history = append(history, got)
	}
	_, err := load(t, history...).Enrol("dvc_more", "", "hash")
	eventtest.Refused(t, err, fault.Conflict, "")

	gone, err := load(t, history...).RevokeDevice("dvc_3")
	require.NoError(t, err)
	_, err = load(t, append(history, gone)...).Enrol("dvc_more", "", "hash")
	require.NoError(t, err, "a revoked device makes room")
}

func TestRevokeDevice(t *testing.T) {
	t.Parallel()
	for name, given := range map[string][]event.Payload{
		"one of two":       {registered, enrolledAs("dvc_two"), enrolled},
		"after a rotation": {registered, enrolled, rotated},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := load(t, given...).RevokeDevice("dvc_one")
			require.NoError(t, err)
			require.Equal(t, revoked, got)
		})
	}
	noSuchDevice(t, func(l location.Location) error {
		_, err := l.RevokeDevice("dvc_one")
		return err
	})
}

func TestRotateDeviceToken(t *testing.T) {
	t.Parallel()
	for name, given := range map[string][]event.Payload{
		"one of two": {registered, enrolledAs("dvc_two"), enrolled},
		"once more":  {registered, enrolled, rotated},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := load(t, given...).RotateDeviceToken("dvc_one", "another hash")
			require.NoError(t, err)
			require.Equal(t, rotated, got)
		})
	}
	noSuchDevice(t, func(l location.Location) error {
		_, err := l.RotateDeviceToken("dvc_one", "another hash")
		return err
	})
	l := load(t, registered, enrolled, enrolledAs("dvc_two"), rotated)
	require.Equal(t, []string{"another hash", "hash of dvc_two"}, []string{l.Devices[0].Hash, l.Devices[1].Hash})
	require.Equal(t, enrolled.Name, l.Devices[0].Name)
}

// noSuchDevice requires that what is done to the device dvc_one is refused where it may not sign in.
func noSuchDevice(t *testing.T, do func(location.Location) error) {
	t.Helper()
	for name, given := range map[string][]event.Payload{
		"never enrolled":             {registered},
		"another's":                  {registered, enrolledAs("dvc_two")},
		"revoked already":            {registered, enrolled, revoked},
		"rotated, then revoked":      {registered, enrolled, rotated, revoked},
		"revoked with its location":  {registered, enrolled, removed},
		"of the location before":     {registered, enrolled, removed, registered},
		"no location and no device":  nil,
		"revoked, its location gone": {registered, enrolled, revoked, removed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eventtest.Refused(t, do(load(t, given...)), fault.NotFound, "")
		})
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	require.Equal(t, location.Location{}, load(t))

	history := eventtest.History(registered, enrolled, enrolledAs("dvc_two"), changed, revoked)
	history[0].Metadata.Idempotency, history[1].Metadata.Idempotency = "key of the location", "key of the device"
	l, err := location.Load(history)
	require.NoError(t, err)
	require.Equal(t, location.Location{
		Details:   location.Details{Name: "Store One", Timezone: "UTC", Tags: []string{}, Channel: changed.Channel},
		CompanyID: "co_one", ExternalID: "store_001", UserID: 7, CreatedAt: eventtest.Begin, Registered: true, Idempotency: "key of the location",
		Devices: []location.Device{
			{ID: "dvc_one", Name: "till", Hash: "hash of dvc_one", EnrolledAt: eventtest.Begin.Add(time.Minute), Revoked: true, Idempotency: "key of the device"},
			{ID: "dvc_two", Name: "till", Hash: "hash of dvc_two", EnrolledAt: eventtest.Begin.Add(2 * time.Minute)},
		},
	}, l)

	gone := load(t, registered, enrolled, enrolledAs("dvc_two"), removed)
	require.False(t, gone.Registered)
	for _, d := range gone.Devices {
		require.True(t, d.Revoked, "%s may not sign in at a location that is gone", d.ID)
	}
	require.Empty(t, load(t, registered, enrolled, removed, registered).Devices, "a location that is made again begins without devices")
}

func TestLoadNamesTheEventThatDoesNotRead(t *testing.T) {
	t.Parallel()
	for _, p := range []event.Payload{registered, changed, enrolled, revoked, rotated} {
		history := eventtest.History(p)
		history[0].Data = []byte(`{"userId": "seven"}`)
		_, err := location.Load(history)
		require.ErrorContains(t, err, p.EventType()+" of test")
	}
}

func TestMappedTo(t *testing.T) {
	t.Parallel()
	owner, err := location.MappedTo(nil)
	require.NoError(t, err)
	require.Empty(t, owner)

	history := eventtest.History(location.Mapped{CompanyID: "co_one", ExternalID: "store_001", UserID: 7})
	owner, err = location.MappedTo(history)
	require.NoError(t, err)
	require.Equal(t, "store_001", owner)

	history[0].Data = []byte(`{"externalId": 5}`)
	_, err = location.MappedTo(history)
	require.ErrorContains(t, err, "ExternalIdMapped of test")
}

func TestDetails(t *testing.T) {
	t.Parallel()
	bad := func(param string, code fault.Code) []eventtest.Field {
		return []eventtest.Field{{Param: param, Code: code}}
	}
	tags := func(n int) []string {
		var tags []string
		for i := range n {
			tags = append(tags, strconv.Itoa(i))
		}
		return tags
	}
	zone := func(name string) location.Details { return location.Details{Name: "a", Timezone: name} }
	channel := func(kind, url string) location.Details {
		return location.Details{Name: "a", Channel: location.Channel{Type: kind, URL: url}}
	}
	withSecret := func(kind, secret string) location.Details {
		d := location.Details{Name: "a", Channel: location.Channel{Type: kind}, Secret: secret}
		if kind == "http" {
			d.Channel.URL = "https://radio.example/in"
		}
		return d
	}
	for name, c := range map[string]struct {
		details location.Details
		want    []eventtest.Field
	}{
		"a name is enough":               {details: location.Details{Name: "a"}},
		"all of them":                    {details: details},
		"no name":                        {location.Details{}, bad("name", fault.MissingField)},
		"a name of spaces":               {location.Details{Name: " \t"}, bad("name", fault.MissingField)},
		"a name of 200":                  {details: location.Details{Name: strings.Repeat("é", 200)}},
		"a name of 201":                  {location.Details{Name: strings.Repeat("é", 201)}, bad("name", fault.OutOfRange)},
		"a name with a NUL":              {location.Details{Name: "a\x00b"}, bad("name", fault.InvalidFormat)},
		"50 tags":                        {details: location.Details{Name: "a", Tags: tags(50)}},
		"51 tags":                        {location.Details{Name: "a", Tags: tags(51)}, bad("tags", fault.OutOfRange)},
		"each tag that is wrong":         {location.Details{Name: "a", Tags: []string{"", "north", ""}}, append(bad("tags[0]", fault.OutOfRange), bad("tags[2]", fault.OutOfRange)...)},
		"a tag of 64":                    {details: location.Details{Name: "a", Tags: []string{strings.Repeat("é", 64)}}},
		"a tag of 65":                    {location.Details{Name: "a", Tags: []string{strings.Repeat("é", 65)}}, bad("tags[0]", fault.OutOfRange)},
		"a tag with a NUL":               {location.Details{Name: "a", Tags: []string{"\x00"}}, bad("tags[0]", fault.InvalidFormat)},
		"UTC":                            {details: zone("UTC")},
		"a zone":                         {details: zone("America/Argentina/Buenos_Aires")},
		"a zone's other name":            {details: zone("Asia/Calcutta")},
		"no zone":                        {zone("Europe/Atlantis"), bad("timezone", fault.InvalidFormat)},
		"an offset":                      {zone("+02:00"), bad("timezone", fault.InvalidFormat)},
		"an abbreviation":                {zone("CEST"), bad("timezone", fault.InvalidFormat)},
		"a path":                         {zone("../Europe/Berlin"), bad("timezone", fault.InvalidFormat)},
		"a path from the root":           {zone("/etc/localtime"), bad("timezone", fault.InvalidFormat)},
		"a folder":                       {zone("Europe"), bad("timezone", fault.InvalidFormat)},
		"another file of the database":   {zone("leapseconds"), bad("timezone", fault.InvalidFormat)},
		"the server's zone, as Go says":  {zone("Local"), bad("timezone", fault.InvalidFormat)},
		"the server's zone, by its file": {zone("localtime"), bad("timezone", fault.InvalidFormat)},
		"the server's default rules":     {zone("posixrules"), bad("timezone", fault.InvalidFormat)},
		"a zone with leap seconds":       {zone("right/Europe/Berlin"), bad("timezone", fault.InvalidFormat)},
		"a zone of some servers":         {zone("posix/Europe/Berlin"), bad("timezone", fault.InvalidFormat)},
		"an endpoint":                    {details: channel("http", "https://radio.example:8443/in?store=1")},
		"an endpoint without TLS":        {details: channel("http", "http://10.0.0.1/in")},
		"the longest endpoint":           {details: channel("http", "https://radio.example/"+strings.Repeat("a", 2048-22))},
		"an endpoint that is too long":   {channel("http", "https://radio.example/"+strings.Repeat("a", 2048-21)), bad("channel.url", fault.InvalidFormat)},
		"no endpoint":                    {channel("http", ""), bad("channel.url", fault.MissingField)},
		"a relative endpoint":            {channel("http", "/in"), bad("channel.url", fault.InvalidFormat)},
		"an endpoint without a host":     {channel("http", "https:///in"), bad("channel.url", fault.InvalidFormat)},
		"an endpoint of a port only":     {channel("http", "https://:8443/in"), bad("channel.url", fault.InvalidFormat)},
		"an endpoint of another scheme":  {channel("http", "file:///etc/passwd"), bad("channel.url", fault.InvalidFormat)},
		"an endpoint that is none":       {channel("http", "https://radio example/\x7f"), bad("channel.url", fault.InvalidFormat)},
		"an endpoint of IPv6":            {details: channel("http", "http://[2001:db8::1]:8080/in#x")},
		"an endpoint with credentials":   {details: channel("http", "https://user:p%40ss@radio.example/in?a=b@c")},
		"an endpoint with two @":         {channel("http", "https://a@b@radio.example"), bad("channel.url", fault.InvalidFormat)},
		"an endpoint with a bad escape":  {channel("http", "https://radio.example/?%zz"), bad("channel.url", fault.InvalidFormat)},
		"an endpoint beyond ASCII":       {channel("http", "https://rädio.example/in"), bad("channel.url", fault.InvalidFormat)},
		"a secret":                       {details: withSecret("http", "whsec_xyz")},
		"the longest secret":             {details: withSecret("http", strings.Repeat("~", 256))},
		"a secret that is too long":      {withSecret("http", strings.Repeat("~", 257)), bad("channel.secret", fault.OutOfRange)},
		"the shortest secret":            {details: withSecret("http", "8 signs.")},
		"a secret that is too short":     {withSecret("http", "7 signs"), bad("channel.secret", fault.OutOfRange)},
		"a secret with a line feed":      {withSecret("http", "two\nlines"), bad("channel.secret", fault.InvalidFormat)},
		"a secret beyond ASCII":          {withSecret("http", "Schlüssel"), bad("channel.secret", fault.InvalidFormat)},
		"a player with a secret":         {withSecret("player", "a secret"), bad("channel.secret", fault.InvalidFormat)},
		"a player with an endpoint":      {channel("player", "https://radio.example/in"), bad("channel.url", fault.InvalidFormat)},
		"an endpoint without a type":     {channel("", "https://radio.example/in"), bad("channel.url", fault.InvalidFormat)},
		"a channel of another type":      {channel("fax", ""), bad("channel.type", fault.InvalidFormat)},
		"everything wrong": {location.Details{Timezone: "Nowhere", Tags: []string{""}, Channel: location.Channel{Type: "fax"}}, []eventtest.Field{
			{Param: "name", Code: fault.MissingField}, {Param: "timezone", Code: fault.InvalidFormat}, {Param: "tags[0]", Code: fault.OutOfRange}, {Param: "channel.type", Code: fault.InvalidFormat}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var fields fault.Fields
			c.details.Check(&fields)
			eventtest.Failing(t, fields, c.want...)
		})
	}
}

// Details that pass the check pass it as they are stored, too, and their zone can be loaded.
func TestNormalDetailsAreGoodDetails(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		d := location.Details{
			Name: rapid.StringN(0, 10, -1).Draw(t, "name"), Timezone: rapid.SampledFrom([]string{"", "UTC", "Asia/Kolkata", "Local", "x"}).Draw(t, "zone"),
			Tags:    rapid.SliceOfN(rapid.StringN(0, 3, -1), 0, 4).Draw(t, "tags"),
			Channel: location.Channel{Type: rapid.SampledFrom([]string{"", "player", "http"}).Draw(t, "type"), URL: rapid.SampledFrom([]string{"", "https://a.example"}).Draw(t, "url")},
		}
		var fields fault.Fields
		if d.Check(&fields); len(fields) > 0 {
			return
		}
		normal := d.Normal()
		normal.Check(&fields)
		require.Empty(t, fields)
		require.Equal(t, normal, normal.Normal())
		require.NotNil(t, normal.Tags)
		require.NotEmpty(t, normal.Channel.Type)
		_, err := time.LoadLocation(normal.Timezone)
		require.NoError(t, err)
	})
}

func TestExternalIDs(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"store_001", "a", "A.b-c:d_9", "0", ".", strings.Repeat("x", 128)} {
		require.True(t, location.ValidExternalID(id), id)
	}
	for _, id := range []string{"", strings.Repeat("x", 129), "store 1", "store/1", "störe", "store\n", "store\x00", "\xff", "a%2e"} {
		require.False(t, location.ValidExternalID(id), id)
	}

	var fields fault.Fields
	location.CheckExternalID("externalId", "store_001", &fields)
	location.CheckExternalID("to", "", &fields)
	location.CheckExternalID("externalIds[3]", "store 1", &fields)
	eventtest.Failing(t, fields, eventtest.Field{Param: "to", Code: fault.MissingField}, eventtest.Field{Param: "externalIds[3]", Code: fault.InvalidFormat})
}

func FuzzExternalID(f *testing.F) {
	for _, id := range []string{"store_001", "", "a b", "store\n", strings.Repeat("x", 128), strings.Repeat("x", 129), "\xff"} {
		f.Add(id)
	}
	f.Fuzz(func(t *testing.T, id string) {
		const allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-:"
		good := len(id) >= 1 && len(id) <= 128 && !strings.ContainsFunc(id, func(r rune) bool { return !strings.ContainsRune(allowed, r) })
		require.Equal(t, good, location.ValidExternalID(id))
		var fields fault.Fields
		location.CheckExternalID("externalId", id, &fields)
		require.Equal(t, good, fields.Err() == nil)
	})
}

// FuzzTimezone is about what a partner can make the zone loader do: whatever is accepted can be loaded, and no path leads out of the zones.
func FuzzTimezone(f *testing.F) {
	for _, name := range []string{"", "UTC", "Europe/Berlin", "Local", "localtime", "right/UTC", "../../etc/passwd", "/etc/localtime", `..\x`, "Europe/", "Europe//Berlin", "\x00", "Etc/GMT+5"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		var fields fault.Fields
		location.Details{Name: "a", Timezone: name}.Check(&fields)
		if len(fields) > 0 {
			eventtest.Failing(t, fields, eventtest.Field{Param: "timezone", Code: fault.InvalidFormat})
			return
		}
		zone, err := time.LoadLocation(name)
		require.NoError(t, err)
		require.NotSame(t, time.Local, zone)
		require.False(t, strings.HasPrefix(name, "/") || strings.Contains(name, ".."), name)
	})
}

// The numbers of locations that exist must not change: they are in stream names and in partners' databases, and the bucket keeps a location's order.
func TestUserIDsAndBucketsStayWhatTheyWere(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		company, externalID string
		attempt             int
		userID              int64
		bucket              int
	}{
		{"co_one", "store_001", 0, 2786668613833188, 12},
		{"co_one", "store_001", 1, 2054325949076679, 216},
		{"co_one", "store_002", 0, 933576854893042, 70},
		{"co_two", "store_001", 0, 3966710750134671, 203},
	} {
		userID := location.UserIDCandidate(c.company, c.externalID, c.attempt)
		require.Equal(t, c.userID, userID, "%s of %s, attempt %d", c.externalID, c.company, c.attempt)
		require.Equal(t, c.bucket, location.Bucket(c.company, userID))
	}
}

func TestUserIDs(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		company, externalID, attempt := rapid.String().Draw(t, "company"), rapid.String().Draw(t, "externalId"), rapid.IntRange(0, 100).Draw(t, "attempt")
		userID := location.UserIDCandidate(company, externalID, attempt)
		require.Positive(t, userID)
		require.LessOrEqual(t, userID, int64(1)<<53, "every JSON reader has it exactly")
		require.EqualValues(t, userID, int64(float64(userID)))
		require.Equal(t, userID, location.UserIDCandidate(company, externalID, attempt))
		require.NotEqual(t, userID, location.UserIDCandidate(company, externalID, attempt+1), "the next attempt is another number")

		bucket := location.Bucket(company, userID)
		require.Equal(t, bucket, location.Bucket(company, userID))
		require.GreaterOrEqual(t, bucket, 0)
		require.Less(t, bucket, location.Buckets)
	})
}

// A broadcast is as many messages as it has buckets, so locations have to spread over all of them.
func TestBucketsAreFilledEvenly(t *testing.T) {
	t.Parallel()
	const locations, perBucket = 25_600, 100
	var filled [location.Buckets]int
	for i := range locations {
		filled[location.Bucket("co_one", location.UserIDCandidate("co_one", fmt.Sprintf("store_%03d", i), 0))]++
	}
	for bucket, n := range filled {
		require.InDelta(t, perBucket, n, perBucket/2, "bucket %d", bucket) // five standard deviations
	}
}

func TestStreams(t *testing.T) {
	t.Parallel()
	require.Equal(t, "location-co_one-7", location.Stream("co_one", 7, event.Live))
	require.Equal(t, "location-co_one-7-test", location.Stream("co_one", 7, event.Test))
	require.Equal(t, "user-co_one-7", location.MappingStream("co_one", 7))
}
