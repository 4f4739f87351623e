package httpapi_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/projections/audit"
)

type shownEntry struct {
	EventID, Type string
	Timestamp     time.Time
	Actor         struct{ Type, ID string }
	Resource      struct{ Type, ID string }
	Related       struct {
		SendID, AudioID, ExternalID string
		Locations                   int
	}
	RequestID *string
	Details   object
}

// trail is the whole audit trail with these filters, oldest first, walked in small pages.
func (p partner) trail(filters ...string) (all []shownEntry) {
	p.t.Helper()
	query := url.Values{"limit": {"3"}}
	for i := 0; i < len(filters); i += 2 {
		query.Set(filters[i], filters[i+1])
	}
	for {
		r := p.get("/audit?" + query.Encode())
		all = append(all, ok[[]shownEntry](p.t, r, http.StatusOK)...)
		next := r.envelope(p.t).Pagination.NextCursor
		if next == nil {
			slices.Reverse(all)
			return all
		}
		query.Set("cursor", *next)
	}
}

func typesOf(entries []shownEntry) []string {
	types := make([]string, len(entries))
	for i, e := range entries {
		types[i] = e.Type
	}
	return types
}

// Each change is in the trail as soon as it was answered, and told by who did it, to what, and when.
func auditTrail(t *testing.T, w *world) {
	p := w.partner(t)
	me := ok[struct{ TokenID string }](t, p.post("/test", nil), http.StatusOK).TokenID
	var did []string
	did = append(did, "CompanyRegistered", "TokenIssued")
	require.Equal(t, did, typesOf(p.trail()))
	then := func(kind string) shownEntry {
		t.Helper()
		did = append(did, kind)
		all := p.trail()
		require.Equal(t, did, typesOf(all))
		return all[len(all)-1]
	}

	ok[object](t, p.post("/locations", object{"externalId": "store_001", "name": "Main Street", "tags": []string{"north"},
		"channel": object{"type": "http", "url": "https://hooks.example.com/secret-path", "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}}, header{"X-Request-Id", "made-it"}), http.StatusCreated)
	made := then("LocationRegistered")
	require.Equal(t, struct{ Type, ID string }{"token", me}, made.Actor)
	require.Equal(t, struct{ Type, ID string }{"location", "store_001"}, made.Resource)
	require.Equal(t, "made-it", *made.RequestID)
	require.Equal(t, object{"name": "Main Street", "tags": []any{"north"}, "timezone": "UTC", "channel": "http"}, made.Details)
	require.WithinDuration(t, time.Now(), made.Timestamp, patience)

	ok[object](t, p.call(http.MethodPatch, "/locations/store_001", object{"name": "High Street", "channel": object{"type": "player"}}), http.StatusOK)
	require.Equal(t, "High Street", then("LocationChanged").Details["name"])
	d := p.device("store_001")
	require.Equal(t, "store_001", then("DeviceEnrolled").Related.ExternalID)
	for i := range 4 {
		p.location(fmt.Sprint("other_", i))
		then("LocationRegistered")
	}
	audio := p.upload("Closing time").AudioID
	require.Equal(t, "Closing time", then("AudioUploaded").Details["name"])
	sent := p.send(audio, object{"all": true})
	broadcast := then("AudioSent")
	require.Equal(t, struct{ Type, ID string }{"send", sent.SendID}, broadcast.Resource)
	require.Equal(t, audio, broadcast.Related.AudioID)
	require.Equal(t, 5, broadcast.Related.Locations, "one entry for all")
	later := p.send(audio, object{"externalIds": []string{"other_1", "other_2"}, "scheduleAt": time.Now().Add(time.Hour).Format(time.RFC3339)})
	require.Equal(t, 2, then("SendScheduled").Related.Locations)
	ok[object](t, p.call(http.MethodPatch, "/sends/"+later.SendID, object{"volume": 10}), http.StatusOK)
	require.EqualValues(t, 10, then("SendRescheduled").Details["volume"])
	ok[object](t, p.del("/sends/"+later.SendID), http.StatusOK)
	require.Equal(t, audio, then("SendCancelled").Related.AudioID)

	deliver := w.listen(t, w.url, d.Token, "").next("deliver")
	delivery, _ := deliver.data["deliveryId"].(string)
	ok[object](t, w.report(t, d.Token, delivery, "played"), http.StatusOK)
	played := p.trail("type", "AudioPlayed")
	require.Len(t, played, 1, "a report is in the trail when it was answered")
	require.Equal(t, struct{ Type, ID string }{"device", d.DeviceID}, played[0].Actor)
	require.Equal(t, struct{ Type, ID string }{"delivery", delivery}, played[0].Resource)
	require.Equal(t, sent.SendID, played[0].Related.SendID)
	require.Equal(t, "store_001", played[0].Related.ExternalID)

	t.Run("filters", func(t *testing.T) {
		all := p.trail()
		want := func(keep func(shownEntry) bool, filters ...string) {
			t.Helper()
			var kept []shownEntry
			for _, e := range all {
				if keep(e) {
					kept = append(kept, e)
				}
			}
			require.Equal(t, kept, p.trail(filters...), "%v", filters)
		}
		want(func(e shownEntry) bool { return e.Actor.ID == me }, "actor", me)
		want(func(e shownEntry) bool { return e.Actor.ID == d.DeviceID }, "actor", d.DeviceID)
		want(func(e shownEntry) bool { return e.Actor.Type == "operator" }, "actor", "operator")
		want(func(e shownEntry) bool { return e.Actor.Type == "company" }, "actor", "company")
		want(func(e shownEntry) bool { return e.Type == "LocationRegistered" }, "type", "LocationRegistered")
		want(func(e shownEntry) bool { return e.Resource.Type == "location" }, "resourceType", "location")
		want(func(e shownEntry) bool { return e.Resource.Type == "send" && e.Actor.ID == me }, "resourceType", "send", "actor", me)
		want(func(shownEntry) bool { return false }, "resourceType", "send", "type", "AudioUploaded")
		want(func(e shownEntry) bool { return e.Resource.ID == sent.SendID || e.Related.SendID == sent.SendID }, "resourceType", "send", "resourceId", sent.SendID)
		want(func(e shownEntry) bool { return e.Resource.ID == audio || e.Resource.Type == "send" }, "resourceType", "audio", "resourceId", audio)
		want(func(e shownEntry) bool { return e.Resource.ID == "store_001" || e.Related.ExternalID == "store_001" }, "resourceType", "location", "resourceId", "store_001")
		want(func(e shownEntry) bool { return e.Resource.ID == delivery }, "resourceType", "delivery", "resourceId", delivery)
		want(func(e shownEntry) bool { return e.Resource.ID == d.DeviceID }, "resourceType", "device", "resourceId", d.DeviceID)
		want(func(e shownEntry) bool { return e.Resource.ID == me }, "resourceType", "token", "resourceId", me)
		want(func(e shownEntry) bool { return e.Resource.Type == "company" }, "resourceType", "company", "resourceId", p.companyID)
		want(func(shownEntry) bool { return false }, "resourceType", "delivery", "resourceId", "dlv_none")
		for _, one := range []string{sent.SendID, audio, "store_001", delivery, d.DeviceID, me, p.companyID} { // an ID alone tells what it is of
			require.Equal(t, p.trail("resourceType", audit.ResourceOf(one), "resourceId", one), p.trail("resourceId", one))
			require.NotEmpty(t, p.trail("resourceId", one), one)
		}
		from, to := all[3].Timestamp, all[6].Timestamp
		want(func(e shownEntry) bool { return !e.Timestamp.Before(from) && e.Timestamp.Before(to) }, "from", from.Format(time.RFC3339Nano), "to", to.Format(time.RFC3339Nano))
		want(func(shownEntry) bool { return true }, "from", from.Format(time.DateOnly), "to", time.Now().AddDate(0, 0, 1).UTC().Format(time.DateOnly))
	})
	t.Run("what is asked for wrongly", func(t *testing.T) {
		wrong := refused(t, p.get("/audit?type=BroadcastSealed&resourceType=x&from=never&limit=0&actor=&cursor=x&who=me"), http.StatusBadRequest, "out_of_range")
		require.Len(t, failing(wrong), 7)
		refused(t, p.as("reader", object{"permissions": []string{"logs.read"}}).get("/audit"), http.StatusForbidden, "insufficient_scope")
		page := p.get("/audit?limit=1").envelope(t).Pagination
		refused(t, p.get("/sends?cursor="+*page.NextCursor), http.StatusBadRequest, "invalid_format")
		refused(t, w.partner(t).get("/audit?cursor="+*page.NextCursor), http.StatusBadRequest, "invalid_format")
	})
	t.Run("nobody sees another's", func(t *testing.T) {
		other := w.partner(t)
		require.Equal(t, []string{"CompanyRegistered", "TokenIssued"}, typesOf(other.trail()))
		require.Empty(t, other.trail("resourceType", "send", "resourceId", sent.SendID))
		require.Empty(t, other.trail("resourceType", "delivery", "resourceId", delivery))
		sandbox := p.as("tester", object{"environment": "test"})
		require.Equal(t, []string{"CompanyRegistered", "TokenIssued"}, typesOf(sandbox.trail()), "what happened to the company, and in the sandbox")
	})
	t.Run("no secret is told", func(t *testing.T) {
		raw := string(p.get("/audit?limit=100").body)
		for _, secret := range []string{p.token, p.companyToken, d.Token, "secret-path", "whsec_", "hash", "blob", "worker:"} {
			require.NotContains(t, strings.ToLower(raw), strings.ToLower(secret))
		}
	})
	t.Run("a page has its tag", func(t *testing.T) {
		path := "/audit?type=LocationChanged"
		first := p.call(http.MethodGet, path, nil, header{"Accept-Encoding", "identity"})
		again := p.call(http.MethodGet, path, nil, header{"If-None-Match", first.Header.Get("ETag")})
		require.Equal(t, http.StatusNotModified, again.StatusCode)
		packed := p.call(http.MethodGet, "/audit?limit=100", nil, header{"Accept-Encoding", "gzip"})
		require.Equal(t, "gzip", packed.Header.Get("Content-Encoding"))
		require.True(t, json.Valid(packed.body))
	})
	t.Run("what ends is in it too", func(t *testing.T) {
		ok[object](t, p.del("/locations/store_001/devices/"+d.DeviceID), http.StatusOK)
		ok[object](t, p.del("/locations/other_0"), http.StatusOK)
		gone := p.as("gone", object{})
		id := ok[struct{ TokenID string }](t, gone.post("/test", nil), http.StatusOK).TokenID
		ok[object](t, p.del("/tokens/"+id), http.StatusOK)
		require.Equal(t, []string{"DeviceEnrolled", "DeviceRevoked"}, typesOf(p.trail("resourceType", "device")))
		require.Contains(t, typesOf(p.trail("resourceType", "location", "resourceId", "other_0")), "LocationRemoved")
		ended := p.trail("resourceType", "token", "resourceId", id)
		require.Equal(t, []string{"TokenIssued", "TokenRevoked"}, typesOf(ended))
		require.Equal(t, "gone", ended[1].Related.ExternalID)
		require.Equal(t, []string{"TokenIssued", "TokenRevoked"}, typesOf(p.trail("resourceType", "location", "resourceId", "gone")))
	})
}
