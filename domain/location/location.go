package location

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
)

const (
	maxNameRunes = 200
	maxTags      = 50
	maxTagRunes  = 64
	maxURLBytes  = 2048
	// minSecret and maxSecret bound the secret of a channel, in characters.
	minSecret = 8
	maxSecret = 256
	// MaxDevices bounds the devices that one location has at the same time.
	MaxDevices = 50
	// Buckets is how many parts the locations are dispatched in.
	Buckets = 256
	// userIDBits keeps a user ID exact in every JSON reader (RFC 8259 §6: integers up to 2^53).
	userIDBits = 52
)

// Channel types.
const (
	ChannelPlayer = "player"
	ChannelHTTP   = "http"
)

// urlPattern is an absolute http or https URL as RFC 3986, appendix A, writes it. url.Parse lets other characters through, and more than one @.
var urlPattern = func() *regexp.Regexp {
	const (
		plain = `(?:[0-9A-Za-z._~!$&'()*+,;=%s-]|%%[0-9A-Fa-f]{2})*`
		host  = `(?:\[[0-9A-Fa-f:.]+\]|` + plain + `)`
	)
	return regexp.MustCompile(fmt.Sprintf(`^(?i:https?)://(?:`+plain+`@)?`+host+`(?::[0-9]*)?(?:/`+plain+`)?(?:\?`+plain+`)?(?:#`+plain+`)?$`, ":", "", ":@/", ":@/?", ":@/?"))
}()

var externalIDPattern = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,128}$`)

// ValidExternalID reports whether a partner may call a location so.
func ValidExternalID(id string) bool { return externalIDPattern.MatchString(id) }

// CheckExternalID notes what is wrong with an external ID.
func CheckExternalID(param, id string, fields *fault.Fields) {
	switch {
	case id == "":
		fields.Add(param, fault.MissingField, "Give %s, your own name for the location or user.", param)
	case !ValidExternalID(id):
		fields.Add(param, fault.InvalidFormat, "%s is 1 to 128 letters, digits, '.', '_', '-' or ':'.", param)
	}
}

// UserIDCandidate is the user ID that an external ID gets, or the next one to try if an earlier candidate belongs to another external ID. It
// follows from the names alone, so it needs no counter, and two processes that map the same external ID at once agree.
func UserIDCandidate(companyID, externalID string, attempt int) int64 {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%d", companyID, externalID, attempt))
	return int64(binary.BigEndian.Uint64(sum[:8])>>(64-userIDBits)) + 1
}

// Bucket is the part that a location is dispatched in, from 0 to Buckets-1.
func Bucket(companyID string, userID int64) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(companyID)) // a hash never fails
	_, _ = h.Write(binary.BigEndian.AppendUint64(nil, uint64(userID)))
	return int(h.Sum32() % Buckets)
}

// MappingStream names the stream that a user ID is claimed in.
func MappingStream(companyID string, userID int64) string {
	return "user-" + companyID + "-" + strconv.FormatInt(userID, 10)
}

// Stream names the stream of a location.
func Stream(companyID string, userID int64, env event.Environment) string {
	name := "location-" + companyID + "-" + strconv.FormatInt(userID, 10)
	if env == event.Test {
		name += "-test"
	}
	return name
}

// Location is the state of a location.
type Location struct {
	Details
	CompanyID  string
	ExternalID string
	UserID     int64
	CreatedAt  time.Time
	// Registered is false for one that never was and one that was removed.
	Registered bool
	Devices    []Device
	// Idempotency is that of the request that registered it.
	Idempotency string
}

// Device is a player that may sign in for a location.
type Device struct {
	ID          string
	Name        string
	Hash        string
	EnrolledAt  time.Time
	Revoked     bool
	Idempotency string
}

// Details are what a partner says of a location.
type Details struct {
	Name     string
	Timezone string
	Tags     []string
	Channel  Channel
	// Secret is that of the channel as the partner gave it; "" if it gave none. It is nowhere but here: what is stored is Channel.Secret.
	Secret string `json:"-"`
}

// Load folds a history into the state.
func Load(history []event.Recorded) (Location, error) {
	var l Location
	for _, e := range history {
		if err := l.apply(e); err != nil {
			return Location{}, fmt.Errorf("%s of %s: %w", e.Type, e.Stream, err)
		}
	}
	return l, nil
}

func (l *Location) apply(e event.Recorded) error {
	switch e.Type {
	case Registered{}.EventType():
		var r Registered
		if err := json.Unmarshal(e.Data, &r); err != nil {
			return err
		}
		*l = Location{
			Details:   Details{Name: r.Name, Timezone: r.Timezone, Tags: r.Tags, Channel: r.Channel},
			CompanyID: r.CompanyID, ExternalID: r.ExternalID, UserID: r.UserID,
			CreatedAt: e.Metadata.Time, Registered: true, Idempotency: e.Metadata.Idempotency,
		}
	case Changed{}.EventType():
		var c Changed
		if err := json.Unmarshal(e.Data, &c); err != nil {
			return err
		}
		l.Details = Details{Name: c.Name, Timezone: c.Timezone, Tags: c.Tags, Channel: c.Channel}
	case Removed{}.EventType():
		l.Registered = false
		for i := range l.Devices {
			l.Devices[i].Revoked = true
		}
	case DeviceEnrolled{}.EventType():
		var d DeviceEnrolled
		if err := json.Unmarshal(e.Data, &d); err != nil {
			return err
		}
		l.Devices = append(l.Devices, Device{ID: d.DeviceID, Name: d.Name, Hash: d.Hash, EnrolledAt: e.Metadata.Time, Idempotency: e.Metadata.Idempotency})
	case DeviceRevoked{}.EventType():
		var d DeviceRevoked
		if err := json.Unmarshal(e.Data, &d); err != nil {
			return err
		}
		for i := range l.Devices {
			if l.Devices[i].ID == d.DeviceID {
				l.Devices[i].Revoked = true
			}
		}
	case DeviceTokenRotated{}.EventType():
		var d DeviceTokenRotated
		if err := json.Unmarshal(e.Data, &d); err != nil {
			return err
		}
		for i := range l.Devices {
			if l.Devices[i].ID == d.DeviceID {
				l.Devices[i].Hash = d.Hash
			}
		}
	}
	return nil
}

// Check notes what is wrong with the details.
func (d Details) Check(fields *fault.Fields) {
	switch n := utf8.RuneCountInString(strings.TrimSpace(d.Name)); {
	case n == 0:
		fields.Add("name", fault.MissingField, "Give the location a name.")
	case n > maxNameRunes:
		fields.Add("name", fault.OutOfRange, "The name has at most %d characters.", maxNameRunes)
	case strings.ContainsRune(d.Name, 0):
		fields.Add("name", fault.InvalidFormat, "The name is UTF-8 text.")
	}
	if d.Timezone != "" {
		if _, err := time.LoadLocation(d.Timezone); err != nil || ofTheHost(d.Timezone) {
			fields.Add("timezone", fault.InvalidFormat, "%q is not an IANA time zone such as Europe/Berlin.", d.Timezone)
		}
	}
	if len(d.Tags) > maxTags {
		fields.Add("tags", fault.OutOfRange, "A location has at most %d tags.", maxTags)
	}
	for i, tag := range d.Tags {
		param := fmt.Sprintf("tags[%d]", i)
		if n := utf8.RuneCountInString(tag); n == 0 || n > maxTagRunes {
			fields.Add(param, fault.OutOfRange, "%s must have 1 to %d characters.", param, maxTagRunes)
		} else if strings.ContainsRune(tag, 0) {
			fields.Add(param, fault.InvalidFormat, "%s has a NUL character; leave it out.", param)
		}
	}
	switch d.Channel.Type {
	case "", ChannelPlayer:
		if d.Channel.URL != "" {
			fields.Add("channel.url", fault.InvalidFormat, "Only a channel of type http has a url.")
		}
		if d.Secret != "" {
			fields.Add("channel.secret", fault.InvalidFormat, "Only a channel of type http has a secret.")
		}
	case ChannelHTTP:
		if d.Channel.URL == "" {
			fields.Add("channel.url", fault.MissingField, "A channel of type http needs a url.")
		} else if u, err := url.Parse(d.Channel.URL); err != nil || !urlPattern.MatchString(d.Channel.URL) || u.Hostname() == "" || len(d.Channel.URL) > maxURLBytes {
			fields.Add("channel.url", fault.InvalidFormat, "The url is an absolute http or https URL of at most %d bytes.", maxURLBytes)
		}
		switch {
		case d.Secret == "":
		case len(d.Secret) < minSecret || len(d.Secret) > maxSecret:
			fields.Add("channel.secret", fault.OutOfRange, "The secret has %d to %d characters.", minSecret, maxSecret)
		case strings.ContainsFunc(d.Secret, func(r rune) bool { return r < ' ' || r > '~' }):
			fields.Add("channel.secret", fault.InvalidFormat, "The secret is of printable characters of ASCII.")
		}
	default:
		fields.Add("channel.type", fault.InvalidFormat, "The channel's type is player or http.")
	}
}

// ofTheHost tells names that a machine's database may have beside the IANA ones: they are another zone elsewhere, or none, or count leap seconds.
func ofTheHost(timezone string) bool {
	return slices.Contains([]string{"Local", "localtime", "posixrules"}, timezone) || strings.HasPrefix(timezone, "posix/") || strings.HasPrefix(timezone, "right/")
}

// Normal gives the details as they are stored: defaults filled in, each tag once.
func (d Details) Normal() Details {
	d.Name = strings.TrimSpace(d.Name)
	if d.Timezone == "" {
		d.Timezone = "UTC"
	}
	tags := []string{}
	for _, tag := range d.Tags {
		if !slices.Contains(tags, tag) {
			tags = append(tags, tag)
		}
	}
	d.Tags = tags
	if d.Channel.Type == "" {
		d.Channel.Type = ChannelPlayer
	}
	return d
}

// Register makes a location, or makes again one that was removed.
func (l Location) Register(companyID, externalID string, userID int64, details Details) (Registered, error) {
	if l.Registered {
		return Registered{}, fault.ForField("externalId", fault.AlreadyExists, "There is a location %q already; PATCH changes it.", externalID)
	}
	d := details.Normal()
	return Registered{CompanyID: companyID, ExternalID: externalID, UserID: userID, Name: d.Name, Timezone: d.Timezone, Tags: d.Tags, Channel: d.Channel}, nil
}

// Change gives a location other details; nil is that it has them already.
func (l Location) Change(details Details) ([]event.Payload, error) {
	if !l.Registered {
		return nil, NotFound()
	}
	d := details.Normal()
	if d.Name == l.Name && d.Timezone == l.Timezone && slices.Equal(d.Tags, l.Tags) && d.Channel == l.Channel {
		return nil, nil
	}
	return []event.Payload{Changed{CompanyID: l.CompanyID, ExternalID: l.ExternalID, UserID: l.UserID, Name: d.Name, Timezone: d.Timezone, Tags: d.Tags, Channel: d.Channel}}, nil
}

// Remove ends a location.
func (l Location) Remove() (Removed, error) {
	if !l.Registered {
		return Removed{}, NotFound()
	}
	return Removed{CompanyID: l.CompanyID, ExternalID: l.ExternalID, UserID: l.UserID}, nil
}

// Enrol lets a player sign in for the location.
func (l Location) Enrol(deviceID, name, hash string) (DeviceEnrolled, error) {
	if !l.Registered {
		return DeviceEnrolled{}, NotFound()
	}
	if utf8.RuneCountInString(name) > maxNameRunes {
		return DeviceEnrolled{}, fault.ForField("name", fault.OutOfRange, "The name has at most %d characters.", maxNameRunes)
	}
	active := 0
	for _, d := range l.Devices {
		if !d.Revoked {
			active++
		}
	}
	if active >= MaxDevices {
		return DeviceEnrolled{}, fault.New(fault.Conflict, "A location has at most %d devices; revoke one first.", MaxDevices)
	}
	return DeviceEnrolled{CompanyID: l.CompanyID, ExternalID: l.ExternalID, UserID: l.UserID, DeviceID: deviceID, Name: name, Hash: hash}, nil
}

// RevokeDevice ends a player's right to sign in.
func (l Location) RevokeDevice(deviceID string) (DeviceRevoked, error) {
	d, ok := l.Device(deviceID)
	if !ok || d.Revoked {
		return DeviceRevoked{}, noDevice()
	}
	return DeviceRevoked{CompanyID: l.CompanyID, ExternalID: l.ExternalID, UserID: l.UserID, DeviceID: deviceID}, nil
}

// RotateDeviceToken gives a player another token to sign in with.
func (l Location) RotateDeviceToken(deviceID, hash string) (DeviceTokenRotated, error) {
	d, ok := l.Device(deviceID)
	if !ok || d.Revoked {
		return DeviceTokenRotated{}, noDevice()
	}
	return DeviceTokenRotated{CompanyID: l.CompanyID, ExternalID: l.ExternalID, UserID: l.UserID, DeviceID: deviceID, Hash: hash}, nil
}

func noDevice() error {
	return fault.New(fault.NotFound, "The location has no such device; find its ID in the list of devices.")
}

// Device finds a device by its ID, revoked or not.
func (l Location) Device(deviceID string) (Device, bool) {
	for _, d := range l.Devices {
		if d.ID == deviceID {
			return d, true
		}
	}
	return Device{}, false
}

// NotFound is the answer for a location that is not there.
func NotFound() error {
	return fault.New(fault.NotFound, "There is no such location; find its external ID in the list of locations, or create it.")
}

// MappedTo reads whose user ID it is from the history of a mapping stream.
func MappedTo(history []event.Recorded) (externalID string, err error) {
	for _, e := range history {
		if e.Type == (Mapped{}).EventType() {
			var m Mapped
			if err := json.Unmarshal(e.Data, &m); err != nil {
				return "", fmt.Errorf("%s of %s: %w", e.Type, e.Stream, err)
			}
			return m.ExternalID, nil
		}
	}
	return "", nil
}
