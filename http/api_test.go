package httpapi_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/domain/token"
	"github.com/musique/musique/infra/postgres"
)

// TestAPI runs everything against one world, each test with companies of its own.
func TestAPI(t *testing.T) {
	w := newWorld(t)
	for name, test := range map[string]func(*testing.T, *world){
		"tokens are made, tested, listed and revoked":      tokensLive,
		"scopes and ends of tokens hold":                   tokensAreLimited,
		"wrong bodies are told":                            wrongBodies,
		"guessing company tokens is limited":               guessing,
		"wrong turns have the contract's form":             wrongTurns,
		"the methods of each path are told":                methodsAreTold,
		"the methods of each path are told to anybody":     optionsAreTold,
		"what a caller has is not sent again":              readsHaveTags,
		"what was changed has another tag":                 changedReadsHaveOtherTags,
		"a tag is of one company":                          tagsAreOfOneCompany,
		"what is not sent again counts":                    notModifiedCounts,
		"conditions that nothing keeps to are refused":     conditionsAreRefused,
		"URLs in answers begin as is set":                  urlsBeginAsIsSet,
		"partners' URLs keep their form":                   partnersURLsKeepTheirForm,
		"answers are packed":                               answersArePacked,
		"published files are packed":                       publishedFilesArePacked,
		"streams are not packed":                           streamsAreNotPacked,
		"names that nothing has are not found":             namesThatNothingHas,
		"large headers are refused":                        largeHeadersAreRefused,
		"a location may be called import":                  locationCalledImport,
		"both path families reach the same":                pathFamilies,
		"audio goes up, comes back and goes":               audioLives,
		"refused uploads tell every field":                 refusedUploads,
		"lists are paged and filtered":                     lists,
		"keys make requests run once":                      idempotency,
		"a send is played and proved":                      sendIsProved,
		"streams resume, and close with their devices":     streams,
		"streams close when the server drains":             drain,
		"presence ends with the stream":                    presenceEndsWithTheStream,
		"one of several players is enough":                 severalPlayers,
		"scheduled sends hold their audio until cancelled": scheduled,
		"refused sends tell every field":                   refusedSends,
		"scheduled sends are changed":                      changedSends,
		"sends are listed by time":                         sendsByTime,
		"what happened is in the audit trail":              auditTrail,
		"deliveries are a file":                            deliveriesInCSV,
		"a large file is whole or has no end":              largeCSV,
		"what became of sends to a location is counted":    statsOfALocation,
		"locations are kept":                               locationsLive,
		"locations are imported":                           imports,
		"companies are strangers to each other":            strangers,
		"a stranger's ID takes as long as none":            strangersTakeAsLong,
		"limits are exact and shown":                       limits,
		"quotas are told with their remedy":                quotas,
		"requests are logged":                              logs,
		"the last requests are logged after a stop":        logsSurviveAStop,
		"health asks each part":                            health,
		"health is told while the database is silent":      healthInSilence,
		"operators":                         operators,
		"the document is valid":             documentIsValid,
		"the document is published":         documentIsPublished,
		"the examples of the document work": examplesWork,
		"the commands of the guides work":   guidesWork,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, w)
		})
	}
}

func tokensLive(t *testing.T, w *world) {
	p := w.company(t, company.Unlimited)
	type token struct {
		Token, TokenID, ExternalID, Environment string
		UserID                                  int64
		ExpiresAt                               *string `json:"expires_at"`
		Permissions                             []string
	}
	made := ok[token](t, call(t, http.MethodPost, w.url+v1+"/auth", "", object{"externalId": "store_001", "companyToken": p.companyToken}), http.StatusCreated)
	require.Regexp(t, `^msk_live_[0-9A-Za-z]{43}$`, made.Token)
	require.Nil(t, made.ExpiresAt)
	require.Positive(t, made.UserID)
	require.Len(t, made.Permissions, 10)
	p.token = made.Token
	tested := ok[object](t, p.post("/test", nil), http.StatusOK)
	require.Equal(t, true, tested["valid"])
	require.Equal(t, "store_001", tested["externalId"])
	require.Nil(t, tested["expires_at"])

	// Asking has an Idempotency-Key as every POST has.
	key := header{"Idempotency-Key", "who am I"}
	for n, replayed := range []string{"", "true", "true"} {
		r := p.post([]string{"/test", "/test", "/api/integration/test"}[n], nil, key)
		require.Equal(t, tested, ok[object](t, r, http.StatusOK))
		require.Equal(t, replayed, r.Header.Get("Idempotency-Replayed"))
	}
	refused(t, p.as("store_002", object{}).post("/test", object{}, key), http.StatusConflict, "conflict")
	ok[object](t, p.as("store_002", object{"environment": "test"}).post("/test", nil, key), http.StatusOK)

	admin := p.as("admin", object{"environment": "prod", "name": "Admin"})
	listed := ok[[]token](t, admin.get("/tokens"), http.StatusOK)
	require.Len(t, listed, 3)
	require.Empty(t, listed[0].Token)
	require.Equal(t, "admin", listed[0].ExternalID, "newest first")

	again := p.as("store_001", object{})
	require.Equal(t, tested["userId"], ok[object](t, again.post("/test", nil), http.StatusOK)["userId"], "an external ID keeps its user ID")
	ok[object](t, admin.call(http.MethodDelete, "/auth", object{"token": again.token}), http.StatusOK)
	refused(t, again.get("/audio"), http.StatusUnauthorized, "invalid_token")
	refused(t, admin.call(http.MethodDelete, "/auth", object{"token": again.token}), http.StatusUnauthorized, "invalid_token")
	ok[object](t, admin.del("/tokens/"+made.TokenID), http.StatusOK)
	refused(t, admin.del("/tokens/"+made.TokenID), http.StatusUnauthorized, "invalid_token")
	refused(t, p.get("/audio"), http.StatusUnauthorized, "invalid_token")

	gone := ok[object](t, admin.del("/auth"), http.StatusOK)
	require.Equal(t, true, gone["revoked"])
	require.NotEmpty(t, gone["message"])
	refused(t, admin.post("/test", nil), http.StatusUnauthorized, "invalid_token")
}

func tokensAreLimited(t *testing.T, w *world) {
	p := w.company(t, company.Unlimited)
	reader := p.as("reader", object{"permissions": []string{"audio.read"}})
	ok[[]object](t, reader.get("/audio"), http.StatusOK)
	e := refused(t, reader.del("/audio/aud_x"), http.StatusForbidden, "insufficient_scope")
	require.Equal(t, []any{"audio.delete"}, e.Error.Details["required"])
	refused(t, reader.call(http.MethodDelete, "/auth", object{"tokenId": "tok_other"}), http.StatusForbidden, "insufficient_scope")
	refused(t, reader.call(http.MethodDelete, "/auth", object{"token": "msk_live_other"}), http.StatusForbidden, "insufficient_scope")
	for _, name := range []string{"token", "tokenId"} {
		for _, nothing := range []any{"", nil} {
			refused(t, reader.call(http.MethodDelete, "/auth", object{name: nothing}), http.StatusBadRequest, "invalid_format") // and revokes nothing
		}
	}
	ok[[]object](t, reader.get("/audio"), http.StatusOK)
	brief := p.as("brief", object{"expiresIn": 1})
	eventually(t, "the token never expired", func() bool { return brief.get("/audio").StatusCode == http.StatusUnauthorized })
	refused(t, brief.get("/audio"), http.StatusUnauthorized, "expired_token")
	for _, token := range []string{"", "x", "msk_live_nonsense", "msk_live_" + strings.Repeat("a", 43), strings.Repeat("z", 5000)} {
		r := call(t, http.MethodGet, w.url+v1+"/audio", token, nil)
		refused(t, r, http.StatusUnauthorized, "invalid_token")
		require.NotEmpty(t, r.Header.Get("WWW-Authenticate"))
	}
}

func wrongBodies(t *testing.T, w *world) {
	auth := func(body string) reply { return call(t, http.MethodPost, w.url+v1+"/auth", "", body) }
	for body, code := range map[string]string{
		"":                                       "invalid_format",
		"{":                                      "invalid_format",
		"[]":                                     "invalid_format",
		`{"externalId": 7, "companyToken": "x"}`: "invalid_format",
		`{"externalId": "x", "companyToken": "x", "surprise": 1}`: "invalid_format",
		`{"externalId": "x", "companyToken": "x"} {}`:             "invalid_format",
		`{"externalId": "no spaces", "companyToken": "comp_x"}`:   "invalid_format",
		`{"externalId": "x", "externalId": "y"}`:                  "invalid_format",
		`{}`:                                                      "missing_field",
	} {
		refused(t, auth(body), http.StatusBadRequest, code)
	}
	require.Equal(t, map[string]string{"externalId": "missing_field", "companyToken": "missing_field"}, failing(refused(t, auth(`{}`), http.StatusBadRequest, "missing_field")))
	require.Equal(t, map[string]string{"externalId": "invalid_format", "companyToken": "missing_field", "environment": "invalid_format", "expiresIn": "out_of_range", "odd": "invalid_format"},
		failing(refused(t, auth(`{"externalId": [], "environment": "moon", "expiresIn": 0, "odd": 1}`), http.StatusBadRequest, "invalid_format")))
	require.Equal(t, []string{"companyToken", "externalId", "permissions[0]", "permissions[1]", "permissions[2]"}, sortedKeys(failing(refused(t, auth(`{"permissions": ["nope", 1, null, "audio.read"]}`), http.StatusBadRequest, "invalid_format"))))
	require.Len(t, failing(refused(t, auth(`{"externalId": "x", "companyToken": "x", "permissions": [`+strings.Repeat(`"nope",`, 300)+`"nope"]}`), http.StatusBadRequest, "invalid_format")), 100)
	p := w.partner(t)
	tags := p.post("/locations", `{"externalId": "x", "name": "x", "tags": ["", 5, null, "`+strings.Repeat("t", 65)+`", "fine"]}`)
	require.Equal(t, map[string]string{"tags[0]": "out_of_range", "tags[1]": "invalid_format", "tags[2]": "invalid_format", "tags[3]": "out_of_range"}, failing(refused(t, tags, http.StatusBadRequest, "invalid_format")))
	refused(t, auth(`{"externalId": "`+strings.Repeat("x", 3_000_000)+`"}`), http.StatusRequestEntityTooLarge, "out_of_range")
	coded := refused(t, call(t, http.MethodPost, w.url+v1+"/auth", "", "\x1f\x8b", header{"Content-Encoding", "gzip"}), http.StatusUnsupportedMediaType, "invalid_format")
	require.Equal(t, "Content-Encoding", coded.Error.Param)
	refused(t, p.post("/audio", form{{name: "name", value: "x"}}, header{"Content-Encoding", "br"}), http.StatusUnsupportedMediaType, "invalid_format")
	refused(t, call(t, http.MethodPost, w.url+v1+"/auth", "", "{}", header{"Content-Encoding", "identity"}), http.StatusBadRequest, "missing_field")
	refused(t, call(t, http.MethodPost, w.url+v1+"/auth", "", "externalId=x", header{"Content-Type", "application/x-www-form-urlencoded"}), http.StatusUnsupportedMediaType, "invalid_format")
	e := refused(t, auth(`{"externalId": "x", "companyToken": "comp_wrong"}`), http.StatusUnauthorized, "invalid_token")
	require.Equal(t, "authentication_error", e.Error.Type)
}

func guessing(t *testing.T, w *world) {
	from := header{"X-Forwarded-For", "198.51.100.7"}
	var wrong, limited atomic.Int64
	var all sync.WaitGroup
	for range 30 {
		all.Go(func() {
			switch call(t, http.MethodPost, w.url+v1+"/auth", "", object{"externalId": "x", "companyToken": "comp_guess"}, from).StatusCode {
			case http.StatusUnauthorized:
				wrong.Add(1)
			case http.StatusTooManyRequests:
				limited.Add(1)
			}
		})
	}
	all.Wait()
	require.Equal(t, int64(30), wrong.Load()+limited.Load())
	require.LessOrEqual(t, wrong.Load(), int64(40), "two minutes at most can have been touched")
	require.GreaterOrEqual(t, wrong.Load(), int64(20))
	p := w.company(t, company.Unlimited)
	ok[object](t, call(t, http.MethodPost, w.url+v1+"/auth", "", object{"externalId": "x", "companyToken": p.companyToken}, header{"X-Forwarded-For", "198.51.100.8"}), http.StatusCreated)
}

func wrongTurns(t *testing.T, w *world) {
	p := w.partner(t)
	for _, path := range []string{"/nowhere", "/api/nowhere", "/api/player/v1/nowhere", "/api/v1/integration/audio/", "/api/integration/"} {
		r := p.get(path)
		refused(t, r, http.StatusNotFound, "not_found")
		require.NotEmpty(t, r.Header.Get("X-RateLimit-Limit"))
	}
	r := p.call(http.MethodPut, "/audio", object{})
	refused(t, r, http.StatusMethodNotAllowed, "method_not_allowed")
	require.Equal(t, "GET, HEAD, OPTIONS, POST", r.Header.Get("Allow"))
	require.Equal(t, "DELETE, GET, HEAD, OPTIONS, PATCH", p.call(http.MethodPut, "/sends/snd_x", object{}).Header.Get("Allow"))
	require.Equal(t, "mine-42", p.call(http.MethodGet, "/audio", nil, header{"X-Request-Id", "mine-42"}).Header.Get("X-Request-Id"))
	unsafe := "a b<c>" + strings.Repeat("x", 200)
	require.NotEqual(t, unsafe, p.call(http.MethodGet, "/audio", nil, header{"X-Request-Id", unsafe}).Header.Get("X-Request-Id"))
	head := p.call(http.MethodHead, "/audio", nil)
	require.Equal(t, http.StatusOK, head.StatusCode)
	require.Empty(t, head.body)
	for _, name := range []string{"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "RateLimit", "RateLimit-Policy"} {
		require.NotEmpty(t, head.Header.Get(name), name)
	}
}

func pathFamilies(t *testing.T, w *world) {
	p := w.partner(t)
	made := ok[uploaded](t, p.post("/api/audio", form{{name: "file", file: wav(0.2, 300)}, {name: "name", value: "One"}}), http.StatusCreated)
	for _, path := range []string{"/audio", "/api/audio"} {
		listed := ok[[]uploaded](t, p.get(path), http.StatusOK)
		require.Len(t, listed, 1)
		require.Equal(t, made.AudioID, listed[0].AudioID)
	}
	p.location("x1")
	for _, path := range []string{"/api/" + made.AudioID + "/send", "/api/audio/" + made.AudioID + "/send"} {
		ok[accepted](t, p.post(path, object{"externalIds": []string{"x1"}, "scheduleAt": time.Now().Add(time.Hour).Format(time.RFC3339)}), http.StatusAccepted)
	}
	for _, path := range []string{"/api/integration", "/api/v1/integration", "/api/v1/integration/", "/api/integration/health", "/api/integration/logs", "/api/integration/limits"} {
		require.Equal(t, http.StatusOK, p.get(path).StatusCode, path)
	}
	ok[object](t, p.post("/api/integration/test", object{}), http.StatusOK)
	other := p.upload("Two")
	require.Equal(t, object{"deleted": true, "audioId": other.AudioID}, ok[object](t, p.del("/api/"+other.AudioID), http.StatusOK))
	information := ok[struct {
		Integration struct{ ExternalID, AccountType, Plan string }
		Features    []string
		Endpoints   map[string]string
	}](t, p.get(""), http.StatusOK)
	require.Equal(t, "hq", information.Integration.ExternalID)
	require.Equal(t, "partner", information.Integration.AccountType)
	require.Equal(t, "POST /api/v1/integration/audio/{audioId}/send", information.Endpoints["SendAudio"])
}

func audioLives(t *testing.T, w *world) {
	p, clip := w.partner(t), wav(2.5, 440)
	made := ok[uploaded](t, p.post("/audio", form{{name: "name", value: " Opening "}, {name: "file", file: clip}, {name: "description", value: "Doors"}, {name: "category", value: "promotion"}}), http.StatusCreated)
	require.Regexp(t, `^aud_[0-9A-Za-z]{22}$`, made.AudioID)
	require.Equal(t, "Opening", made.Name)
	require.InDelta(t, 2.5, made.Duration, 0.01)
	require.Equal(t, len(clip), made.Size)
	got := ok[struct {
		uploaded
		Stats object
	}](t, p.get("/audio/"+made.AudioID), http.StatusOK)
	require.Equal(t, "Doors", got.Description)
	require.Equal(t, object{"timesPlayed": 0.0, "lastPlayedAt": nil, "totalRecipients": 0.0}, got.Stats)

	whole := call(t, http.MethodGet, made.URL, "", nil)
	require.Equal(t, http.StatusOK, whole.StatusCode)
	require.Equal(t, clip, whole.body)
	require.Equal(t, `"`+made.SHA256+`"`, whole.Header.Get("ETag"))
	some := call(t, http.MethodGet, made.URL, "", nil, header{"Range", "bytes=10-19"})
	require.Equal(t, http.StatusPartialContent, some.StatusCode)
	require.Equal(t, clip[10:20], some.body)
	require.Equal(t, http.StatusNotModified, call(t, http.MethodGet, made.URL, "", nil, header{"If-None-Match", whole.Header.Get("ETag")}).StatusCode)
	beyond := call(t, http.MethodGet, made.URL, "", nil, header{"Range", "bytes=90000000-"}, header{"X-Request-Id", "beyond"})
	refused(t, beyond, http.StatusRequestedRangeNotSatisfiable, "out_of_range")
	require.Equal(t, "beyond", beyond.Header.Get("X-Request-Id"))
	require.Equal(t, fmt.Sprintf("bytes */%d", made.Size), beyond.Header.Get("Content-Range"))
	require.Equal(t, "application/json; charset=utf-8", beyond.Header.Get("Content-Type"))
	require.Empty(t, beyond.Header.Get("ETag"))
	refused(t, call(t, http.MethodGet, made.URL+"x", "", nil), http.StatusNotFound, "not_found")
	secure := ok[uploaded](t, p.call(http.MethodGet, "/audio/"+made.AudioID, nil, header{"X-Forwarded-Proto", "https"}, header{"X-Forwarded-Host", "api.musique.app"}), http.StatusOK)
	require.True(t, strings.HasPrefix(secure.URL, "https://api.musique.app/media/"), secure.URL)

	require.Equal(t, object{"deleted": true, "audioId": made.AudioID}, ok[object](t, p.del("/audio/"+made.AudioID), http.StatusOK))
	refused(t, p.get("/audio/"+made.AudioID), http.StatusNotFound, "not_found")
	refused(t, p.del("/audio/"+made.AudioID), http.StatusNotFound, "not_found")
	require.Equal(t, http.StatusNotFound, call(t, http.MethodGet, made.URL, "", nil).StatusCode)
}

func refusedUploads(t *testing.T, w *world) {
	p, clip := w.partner(t), wav(0.5, 440)
	e := refused(t, p.post("/audio", form{{name: "category", value: "poetry"}, {name: "odd", value: "1"}, {name: "description", value: strings.Repeat("d", 1001)}}), http.StatusBadRequest, "invalid_format")
	require.Equal(t, []string{"category", "description", "file", "name", "odd"}, sortedKeys(failing(e)))
	text := []byte("This is no audio.")
	e = refused(t, p.post("/audio", form{{name: "category", value: "poetry"}, {name: "odd", value: "1"}, {name: "description", value: strings.Repeat("d", 1001)}, {name: "file", file: text}}), http.StatusBadRequest, "invalid_format")
	require.Equal(t, []string{"category", "description", "file", "name", "odd"}, sortedKeys(failing(e)))
	e = refused(t, p.post("/audio", form{{name: "name", value: strings.Repeat("n", 201)}, {name: "file", file: make([]byte, 12<<20)}, {name: "category", value: "poetry"}}), http.StatusRequestEntityTooLarge, "out_of_range")
	require.Equal(t, map[string]string{"category": "invalid_format", "file": "out_of_range", "name": "out_of_range"}, failing(e))
	require.Equal(t, "file", e.Error.Param)
	refused(t, p.post("/audio", form{{name: "file", file: clip}}), http.StatusBadRequest, "missing_field")
	refused(t, p.post("/audio", form{{name: "name", value: "x"}}), http.StatusBadRequest, "missing_field")
	refused(t, p.post("/audio", form{{name: "name", value: strings.Repeat("n", 201)}, {name: "file", file: clip}}), http.StatusBadRequest, "out_of_range")
	refused(t, p.post("/audio", object{"name": "x"}), http.StatusUnsupportedMediaType, "invalid_format")
	for name, file := range map[string][]byte{"empty": {}, "script": []byte(strings.Repeat("#!/bin/sh\necho hi\n", 50)), "truncated": clip[:len(clip)/2], "zeros": make([]byte, 4096)} {
		refused(t, p.post("/audio", form{{name: "name", value: name}, {name: "file", file: file}}), http.StatusBadRequest, "invalid_format")
	}
	refused(t, p.post("/audio", form{{name: "name", value: "large"}, {name: "file", file: append(wav(1, 440), make([]byte, 11_000_000)...)}}), http.StatusRequestEntityTooLarge, "out_of_range")
	raw, kind := form{{name: "name", value: "cut"}, {name: "file", file: clip}}.encode(t)
	refused(t, p.post("/audio", string(raw[:len(raw)/2]), header{"Content-Type", kind}), http.StatusBadRequest, "invalid_format")
	require.Empty(t, ok[[]object](t, p.get("/audio"), http.StatusOK), "a refused upload left something in the library")
}

func lists(t *testing.T, w *world) {
	p := w.partner(t)
	var made []string
	for i := range 7 {
		made = append(made, p.upload(fmt.Sprintf("clip %d", i)).AudioID)
	}
	var seen []string
	url := w.url + v1 + "/audio?limit=3"
	for pages := 1; ; pages++ {
		r := call(t, http.MethodGet, url, p.token, nil)
		for _, a := range ok[[]uploaded](t, r, http.StatusOK) {
			seen = append(seen, a.AudioID)
		}
		page := r.envelope(t).Pagination
		require.Equal(t, 3, page.Limit)
		if !page.HasMore {
			require.Nil(t, page.NextCursor)
			require.Equal(t, 3, pages)
			break
		}
		if pages == 1 {
			p.upload("late")
		}
		link, rel, _ := strings.Cut(r.Header.Get("Link"), ">; ")
		require.Equal(t, `rel="next"`, rel)
		url = strings.TrimPrefix(link, "<")
		require.Contains(t, url, *page.NextCursor)
		rest := "?limit=3&cursor=" + *page.NextCursor
		ok[[]uploaded](t, p.get("/api/audio"+rest), http.StatusOK)
		for _, elsewhere := range []reply{p.get("/sends" + rest), w.partner(t).get("/audio" + rest)} {
			require.Equal(t, map[string]string{"cursor": "invalid_format"}, failing(refused(t, elsewhere, http.StatusBadRequest, "invalid_format")))
		}
	}
	require.Len(t, seen, 7)
	for i, id := range seen {
		require.Equal(t, made[len(made)-1-i], id)
	}
	for _, bad := range []string{"limit=0", "limit=101", "limit=x", "cursor=garbage", "category=poetry", "format=flac", "createdAfter=yesterday", "limit=1&limit=2", "odd=1", "q=%00", "q=%ff", "a=%zz"} {
		require.Equal(t, http.StatusBadRequest, p.get("/audio?"+bad).StatusCode, bad)
	}
	require.Len(t, failing(refused(t, p.get("/audio?limit=0&category=poetry&createdAfter=x&odd=1"), http.StatusBadRequest, "out_of_range")), 4)
	require.Empty(t, failing(refused(t, p.get("/audio?limit=0&a=%zz"), http.StatusBadRequest, "invalid_format")), "nothing can be said of single parameters")
	names := func(query string) int { return len(ok[[]object](t, p.get("/audio?"+query), http.StatusOK)) }
	require.Equal(t, 1, names("q=LATE"))
	require.Equal(t, 0, names("q=%25"))
	require.Equal(t, 0, names("createdBefore=2020-01-01T00:00:00Z"))
	require.Equal(t, 8, names("format=wav&category=announcement"))
}

func idempotency(t *testing.T, w *world) {
	p, key := w.partner(t), header{"Idempotency-Key", "order-77"}
	file := part{name: "file", file: wav(0.5, 500)}
	first := p.post("/audio", form{{name: "name", value: "once"}, file}, key)
	require.Empty(t, first.Header.Get("Idempotency-Replayed"))
	again := p.post("/audio", form{file, {name: "name", value: "once"}}, key)
	require.Equal(t, "true", again.Header.Get("Idempotency-Replayed"))
	audio := ok[uploaded](t, first, http.StatusCreated)
	require.Equal(t, audio.AudioID, ok[uploaded](t, again, http.StatusCreated).AudioID)
	refused(t, p.post("/audio", form{{name: "name", value: "other"}, file}, key), http.StatusConflict, "conflict")
	refused(t, p.post("/audio", form{{name: "name", value: "x"}, file}, header{"Idempotency-Key", strings.Repeat("k", 256)}), http.StatusBadRequest, "out_of_range")

	p.location("k1")
	var sends sync.Map
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			body := `{"externalIds": ["k1"], "repeat": 2}`
			if i%2 == 0 {
				body = `{"repeat": 2.0, "externalIds": ["k1"]}`
			}
			r := p.post("/audio/"+audio.AudioID+"/send", body, header{"Idempotency-Key", "send-1"})
			if r.StatusCode == http.StatusAccepted {
				sends.Store(ok[accepted](t, r, http.StatusAccepted).SendID, true)
			} else {
				sends.Store(string(r.body), true)
			}
		})
	}
	all.Wait()
	var ids []any
	sends.Range(func(id, _ any) bool { ids = append(ids, id); return true })
	require.Len(t, ids, 1, "%v", ids)
	require.Len(t, ok[[]object](t, p.get("/sends"), http.StatusOK), 1)
	r := p.post("/audio/"+audio.AudioID+"/send", object{"externalIds": []string{"k1", "k1"}, "repeat": 2, "volume": 100, "priority": "normal", "expiresIn": 86_400}, header{"Idempotency-Key", "send-1"})
	require.Equal(t, ids, []any{ok[accepted](t, r, http.StatusAccepted).SendID}, "what goes without saying may be said")
	for n, body := range []object{{"externalId": "k2", "name": "Two"}, {"externalId": "k2", "name": " Two", "timezone": "UTC", "tags": []string{}, "channel": object{"type": "player"}}} {
		one := p.post("/locations", body, header{"Idempotency-Key", "location-2"})
		ok[object](t, one, http.StatusCreated)
		require.Equal(t, n == 1, one.Header.Get("Idempotency-Replayed") == "true")
		many := p.post("/locations/import", object{"locations": []object{body}}, header{"Idempotency-Key", "import-2"})
		ok[object](t, many, http.StatusOK)
		require.Equal(t, n == 1, many.Header.Get("Idempotency-Replayed") == "true")
	}
	for n, more := range []object{{}, {"environment": "prod", "permissions": token.Permissions}} {
		body := object{"externalId": "k1", "companyToken": p.companyToken}
		maps.Copy(body, more)
		made := p.post("/auth", body, header{"Idempotency-Key", "token-2"})
		ok[object](t, made, http.StatusCreated)
		require.Equal(t, n == 1, made.Header.Get("Idempotency-Replayed") == "true")
	}
	other := p.upload("another")
	refused(t, p.post("/audio/"+other.AudioID+"/send", object{"externalIds": []string{"k1"}, "repeat": 2}, header{"Idempotency-Key", "send-1"}), http.StatusConflict, "conflict")

	made := p.post("/locations/k1/devices", object{"name": "till"}, header{"Idempotency-Key", "device-1"})
	remade := p.post("/locations/k1/devices", object{"name": "till"}, header{"Idempotency-Key", "device-1"})
	require.Equal(t, ok[device](t, made, http.StatusCreated), ok[device](t, remade, http.StatusCreated))
	rotate := func() reply {
		return p.post("/locations/k1/devices/"+ok[device](t, made, http.StatusCreated).DeviceID+"/rotate", nil, header{"Idempotency-Key", "rotate-1"})
	}
	rotated, again := rotate(), rotate()
	require.Equal(t, ok[device](t, rotated, http.StatusCreated), ok[device](t, again, http.StatusCreated))
	require.NotEqual(t, ok[device](t, made, http.StatusCreated).Token, ok[device](t, rotated, http.StatusCreated).Token)
	require.Equal(t, "true", again.Header.Get("Idempotency-Replayed"))
	require.Equal(t, "true", remade.Header.Get("Idempotency-Replayed"))

	auth := func() (reply, string) {
		r := call(t, http.MethodPost, w.url+v1+"/auth", "", object{"externalId": "till", "companyToken": p.companyToken}, header{"Idempotency-Key", "token-1"})
		return r, ok[struct{ Token string }](t, r, http.StatusCreated).Token
	}
	_, token := auth()
	replay, same := auth()
	require.Equal(t, token, same)
	require.Equal(t, "true", replay.Header.Get("Idempotency-Replayed"))
}

func sendIsProved(t *testing.T, w *world) {
	p := w.partner(t)
	p.location("store_001")
	d := p.device("store_001")
	player := w.listen(t, w.url, d.Token, "")
	eventually(t, "the location is not online", func() bool {
		return ok[struct{ Online bool }](t, p.get("/locations/store_001"), http.StatusOK).Online
	})
	audio := p.upload("Clip")
	sent := p.send(audio.AudioID, object{"externalIds": []string{"store_001"}, "priority": "high", "volume": 0, "repeat": 2})
	require.Equal(t, 1.0, ok[struct{ Stats object }](t, p.get("/audio/"+audio.AudioID), http.StatusOK).Stats["totalRecipients"], "who sent reads it at once")
	e := player.next("deliver")
	require.Equal(t, sent.SendID, e.data["sendId"])
	require.Equal(t, 0.0, e.data["volume"])
	require.Equal(t, 2.0, e.data["repeat"])
	require.Equal(t, "high", e.data["priority"])
	toPlay := e.data["audio"].(object) //nolint:forcetypeassert // a test
	require.Equal(t, audio.SHA256, toPlay["sha256"])
	require.InDelta(t, 0.5, toPlay["duration"], 0.01)
	require.Equal(t, wav(0.5, 440), call(t, http.MethodGet, toPlay["url"].(string), "", nil).body)
	delivery := e.data["deliveryId"].(string) //nolint:forcetypeassert // a test
	for _, status := range []string{"delivered", "playing", "played", "delivered", "played"} {
		ok[object](t, w.report(t, d.Token, delivery, status), http.StatusOK)
	}
	refused(t, w.report(t, d.Token, delivery, "eaten"), http.StatusBadRequest, "invalid_format")
	before := call(t, http.MethodPost, w.url+"/api/player/v1/deliveries/"+delivery, "", object{"status": "playing", "at": "0000-01-01T00:00:00+01:00"}, header{"Authorization", "Bearer " + d.Token})
	require.Equal(t, "at", refused(t, before, http.StatusBadRequest, "invalid_format").Error.Param)
	eventually(t, "the send never became sent", func() bool {
		return ok[accepted](t, p.get("/sends/"+sent.SendID), http.StatusOK).Status == "sent"
	})
	listed := ok[[]object](t, p.get("/sends/"+sent.SendID+"/deliveries"), http.StatusOK)
	require.Len(t, listed, 1)
	require.Equal(t, "played", listed[0]["status"])
	for _, at := range []string{"queuedAt", "deliveredAt", "playingAt", "playedAt"} {
		require.NotNil(t, listed[0][at], at)
	}
	require.Nil(t, listed[0]["failedAt"])
	eventually(t, "the stats never moved", func() bool {
		stats := ok[struct{ Stats object }](t, p.get("/audio/"+audio.AudioID), http.StatusOK).Stats
		return stats["timesPlayed"] == 1.0 && stats["totalRecipients"] == 1.0 && stats["lastPlayedAt"] != nil
	})
	player.stop()
	eventually(t, "the location is still online", func() bool {
		return !ok[struct{ Online bool }](t, p.get("/locations/store_001"), http.StatusOK).Online
	})

	stranger := p.device("store_001")
	p.location("store_002")
	other := p.device("store_002")
	ok[object](t, w.report(t, stranger.Token, delivery, "played"), http.StatusOK)
	refused(t, w.report(t, other.Token, delivery, "played"), http.StatusNotFound, "not_found")
	refused(t, w.report(t, p.token, delivery, "played"), http.StatusUnauthorized, "invalid_token")
	refused(t, call(t, http.MethodGet, w.url+"/api/player/v1/stream", "", nil, header{"Authorization", "Bearer " + p.token}), http.StatusUnauthorized, "invalid_token")
	refused(t, call(t, http.MethodGet, w.url+v1+"/audio", d.Token, nil), http.StatusUnauthorized, "invalid_token")
}

func streams(t *testing.T, w *world) {
	p := w.partner(t)
	p.location("till")
	d, audio := p.device("till"), p.upload("Clip")
	first := p.send(audio.AudioID, object{"externalIds": []string{"till"}})
	one := w.listen(t, w.url, d.Token, "")
	got := one.next("deliver")
	require.Equal(t, first.SendID, got.data["sendId"])
	one.stop()
	second := p.send(audio.AudioID, object{"all": true})
	resumed := w.listen(t, w.url, d.Token, got.id)
	require.Equal(t, second.SendID, resumed.next("deliver").data["sendId"])
	fresh := w.listen(t, w.url, d.Token, "")
	require.Equal(t, first.SendID, fresh.next("deliver").data["sendId"], "without Last-Event-ID all that is open comes, oldest first")
	require.Equal(t, second.SendID, fresh.next("deliver").data["sendId"])
	lost := w.listen(t, w.url, d.Token, "999999999999")
	require.Equal(t, first.SendID, lost.next("deliver").data["sendId"], "an ID of an inbox that is no more")
	ok[object](t, p.del("/sends/"+second.SendID), http.StatusOK)
	require.Equal(t, second.SendID, fresh.next("cancel").data["sendId"])
	refused(t, call(t, http.MethodGet, w.url+"/api/player/v1/stream", "", nil, header{"Authorization", "Bearer " + d.Token}, header{"Last-Event-ID", "x"}), http.StatusBadRequest, "invalid_format")

	_, elsewhere, _ := w.serve(t, w.config) // another process of the API
	far := w.listen(t, elsewhere, d.Token, "")
	ok[object](t, p.del("/locations/till/devices/"+d.DeviceID), http.StatusOK)
	for _, s := range []*stream{resumed, fresh, lost, far} {
		s.ended()
	}
	refused(t, w.report(t, d.Token, "dlv_x", "played"), http.StatusUnauthorized, "invalid_token")
	refused(t, p.del("/locations/till/devices/"+d.DeviceID), http.StatusNotFound, "not_found")

	next := p.device("till")
	last := w.listen(t, w.url, next.Token, "")
	require.Equal(t, first.SendID, last.next("deliver").data["sendId"])
	require.Len(t, ok[[]device](t, p.get("/locations/till/devices"), http.StatusOK), 1)
	ok[object](t, p.del("/locations/till"), http.StatusOK)
	last.ended()
}

// Each player of a location is told everything, and what the first of them plays is played, whatever the others say before and after.
func severalPlayers(t *testing.T, w *world) {
	p := w.partner(t)
	p.location("till")
	one, two, audio := p.device("till"), p.device("till"), p.upload("Clip")
	hears := []*stream{w.listen(t, w.url, one.Token, ""), w.listen(t, w.url, two.Token, "")}
	sent := func() (sendID, deliveryID string) {
		sendID = p.send(audio.AudioID, object{"externalIds": []string{"till"}}).SendID
		for _, s := range hears {
			got := s.next("deliver")
			require.Equal(t, sendID, got.data["sendId"])
			deliveryID = got.data["deliveryId"].(string) //nolint:forcetypeassert // a test
		}
		return sendID, deliveryID
	}
	tell := func(d device, deliveryID, status string) string {
		t.Helper()
		return ok[struct{ Status string }](t, w.report(t, d.Token, deliveryID, status), http.StatusOK).Status
	}
	plays := func() float64 {
		return ok[struct{ Stats object }](t, p.get("/audio/"+audio.AudioID), http.StatusOK).Stats["timesPlayed"].(float64) //nolint:forcetypeassert // a test
	}
	ends := func(sendID, of, all string) {
		t.Helper()
		eventually(t, sendID+" does not end as "+all, func() bool {
			return ok[[]struct{ Status string }](t, p.get("/sends/"+sendID+"/deliveries"), http.StatusOK)[0].Status == of &&
				ok[struct{ Status string }](t, p.get("/sends/"+sendID), http.StatusOK).Status == all
		})
	}

	send, id := sent()
	require.Equal(t, "queued", tell(one, id, "failed"), "the other one may still play it")
	require.Equal(t, "queued", tell(one, id, "failed"))
	require.Equal(t, "delivered", tell(two, id, "delivered"))
	require.Equal(t, "playing", tell(two, id, "playing"))
	require.Equal(t, "playing", tell(one, id, "failed"))
	require.Equal(t, "played", tell(two, id, "played"))
	require.Equal(t, "played", tell(one, id, "failed"))
	ends(send, "played", "sent")
	require.InDelta(t, 1, plays(), 0)

	send, id = sent()
	for _, status := range []string{"delivered", "playing", "played"} {
		for _, d := range []device{one, two, one} {
			require.Equal(t, status, tell(d, id, status))
		}
	}
	ends(send, "played", "sent")
	require.InDelta(t, 2, plays(), 0, "two that played are one time")

	send, id = sent()
	require.Equal(t, "queued", tell(two, id, "failed"))
	require.Equal(t, "failed", tell(one, id, "failed"), "there is no other left")
	ends(send, "failed", "failed")

	send, id = sent()
	ok[object](t, p.del("/locations/till/devices/"+two.DeviceID), http.StatusOK)
	require.Equal(t, "failed", tell(one, id, "failed"), "the other one is revoked")
	ends(send, "failed", "failed")
	require.InDelta(t, 2, plays(), 0)
}

func drain(t *testing.T, w *world) {
	p := w.partner(t)
	p.location("till")
	d := p.device("till")
	api, url, ops := w.serve(t, w.config)
	s := w.listen(t, url, d.Token, "")
	require.Equal(t, http.StatusOK, call(t, http.MethodGet, ops+"/readyz", "", nil).StatusCode)
	api.Drain()
	s.ended()
	require.Equal(t, http.StatusServiceUnavailable, call(t, http.MethodGet, ops+"/readyz", "", nil).StatusCode)
	require.Equal(t, http.StatusOK, call(t, http.MethodGet, ops+"/livez", "", nil).StatusCode)
}

func scheduled(t *testing.T, w *world) {
	p := w.partner(t)
	p.location("s1")
	audio := p.upload("Clip")
	far := time.Now().Add(48 * time.Hour).Truncate(time.Second)
	sent := ok[object](t, p.post("/audio/"+audio.AudioID+"/send", object{"externalIds": []string{"s1"}, "scheduleAt": far.In(time.FixedZone("", -3*3600)).Format(time.RFC3339)}), http.StatusAccepted)
	require.Equal(t, true, sent["scheduled"])
	require.Equal(t, "scheduled", sent["status"])
	require.Equal(t, far.UTC().Format(time.RFC3339), sent["scheduleAt"])
	id := sent["sendId"].(string) //nolint:forcetypeassert // a test
	stuck := p.del("/audio/" + audio.AudioID)
	refused(t, stuck, http.StatusConflict, "conflict")
	require.Contains(t, string(stuck.body), id)
	require.Equal(t, "scheduled", ok[accepted](t, p.get("/sends/"+id), http.StatusOK).Status)
	ok[object](t, p.del("/sends/"+id), http.StatusOK)
	require.Equal(t, "cancelled", ok[accepted](t, p.get("/sends/"+id), http.StatusOK).Status)
	refused(t, p.del("/sends/"+id), http.StatusConflict, "conflict")
	ok[object](t, p.del("/audio/"+audio.AudioID), http.StatusOK)
}

func refusedSends(t *testing.T, w *world) {
	p := w.partner(t)
	p.location("r1")
	audio := p.upload("Clip")
	send := func(body object) reply { return p.post("/audio/"+audio.AudioID+"/send", body) }
	to := func(field string, value any) object { return object{"externalIds": []string{"r1"}, field: value} }
	for field, value := range map[string]any{"volume": 101, "repeat": 0, "scheduleAt": "2020-01-01T00:00:00Z", "expiresIn": 0} {
		require.Equal(t, field, refused(t, send(to(field, value)), http.StatusBadRequest, "out_of_range").Error.Param)
	}
	for field, value := range map[string]any{"priority": "soon", "scheduleAt": "2027-01-01T00:00:00", "volume": "loud", "externalIds": "r1", "localTime": "9 o'clock"} {
		require.Equal(t, field, refused(t, send(to(field, value)), http.StatusBadRequest, "invalid_format").Error.Param)
	}
	require.Equal(t, map[string]string{"volume": "invalid_format", "repeat": "out_of_range", "externalIds": "missing_field", "odd": "invalid_format"},
		failing(refused(t, send(object{"volume": 1.5, "repeat": 99, "odd": true}), http.StatusBadRequest, "invalid_format")))
	refused(t, send(object{}), http.StatusBadRequest, "missing_field")
	refused(t, send(to("localTime", "")), http.StatusBadRequest, "invalid_format")
	refused(t, send(object{"all": true, "externalIds": []string{"r1"}}), http.StatusBadRequest, "invalid_format")
	many := strings.Repeat(`"r1",`, 200_000)
	require.Equal(t, 1, ok[accepted](t, p.post("/audio/"+p.upload("Again").AudioID+"/send", `{"externalIds": [`+many+`"r1"]}`), http.StatusAccepted).TotalDestinations, "each counts once")
	require.Equal(t, map[string]string{"externalIds[200000]": "invalid_format", "externalIds[200002]": "invalid_format"},
		failing(refused(t, p.post("/audio/"+audio.AudioID+"/send", `{"externalIds": [`+many+`5, "r1", null]}`), http.StatusBadRequest, "invalid_format")))
	e := refused(t, send(object{"externalIds": []string{"ghost", "r1", "spook"}}), http.StatusNotFound, "not_found")
	require.ElementsMatch(t, []any{"ghost", "spook"}, e.Error.Details["externalIds"])
	require.Len(t, ok[[]object](t, p.get("/sends"), http.StatusOK), 1)
	refused(t, p.post("/audio/aud_none/send", to("volume", 1)), http.StatusNotFound, "not_found")
}

func locationsLive(t *testing.T, w *world) {
	p := w.partner(t)
	made := ok[object](t, p.post("/locations", object{"externalId": "n:1", "name": "North", "timezone": "America/Sao_Paulo", "tags": []string{"north"}}), http.StatusCreated)
	require.Equal(t, false, made["online"])
	require.Nil(t, made["lastSeenAt"])
	require.Equal(t, object{"type": "player"}, made["channel"])
	refused(t, p.post("/locations", object{"externalId": "n:1", "name": "North"}), http.StatusConflict, "already_exists")
	require.Equal(t, "channel.type", refused(t, p.post("/locations", object{"externalId": "n:2", "name": "x", "channel": object{}}), http.StatusBadRequest, "missing_field").Error.Param)
	require.Equal(t, "channel.url", refused(t, p.post("/locations", object{"externalId": "n:2", "name": "x", "channel": object{"type": "player", "url": ""}}), http.StatusBadRequest, "invalid_format").Error.Param)
	e := refused(t, p.post("/locations", object{"externalId": "bad id", "timezone": "Mars/Olympus", "tags": "north", "channel": object{"type": 1}}), http.StatusBadRequest, "invalid_format")
	require.Equal(t, []string{"channel.type", "externalId", "name", "tags", "timezone"}, sortedKeys(failing(e)))
	got := ok[object](t, p.get("/locations/n:1"), http.StatusOK)
	require.Contains(t, got, "stats")
	delete(got, "stats")
	require.Equal(t, made, got)
	changed := ok[object](t, p.call(http.MethodPatch, "/locations/n:1", object{"tags": []string{"south"}}), http.StatusOK)
	require.Equal(t, []any{"south"}, changed["tags"])
	require.Equal(t, "North", changed["name"])
	refused(t, p.call(http.MethodPatch, "/locations/n:1", object{"timezone": "Mars/Olympus"}), http.StatusBadRequest, "invalid_format")
	refused(t, p.call(http.MethodPatch, "/locations/none", object{"name": "x"}), http.StatusNotFound, "not_found")
	e = refused(t, p.call(http.MethodPatch, "/locations/n:1", object{"timezone": "Mars/Olympus", "tags": []string{""}, "channel": object{"type": "pigeon"}, "odd": 1}), http.StatusBadRequest, "invalid_format")
	require.Equal(t, []string{"channel.type", "odd", "tags[0]", "timezone"}, sortedKeys(failing(e)))
	require.Len(t, ok[[]object](t, p.get("/locations?tag=south&online=false&q=NORTH"), http.StatusOK), 1)
	require.Empty(t, ok[[]object](t, p.get("/locations?tag=north"), http.StatusOK))
	found := func(q string) (ids []any) {
		for _, l := range ok[[]object](t, p.get("/locations?q="+url.QueryEscape(q)), http.StatusOK) {
			ids = append(ids, l["externalId"])
		}
		return ids
	}
	ok[object](t, p.post("/locations", object{"externalId": "Kiosk_I", "name": "CAFÉ ÜBER"}), http.StatusCreated)
	for _, q := range []string{"café ü", "CAFÉ", "e\u0301 u\u0308b", "kiosk_i", "KIOSK"} {
		require.Equal(t, []any{"Kiosk_I"}, found(q), q)
	}
	require.Empty(t, found("cafe"))
	require.Empty(t, found("kiosk%i"))
	ok[object](t, p.call(http.MethodPatch, "/locations/Kiosk_I", object{"name": "ЧАЙ"}), http.StatusOK)
	ok[object](t, p.post("/locations/import", object{"locations": []object{{"externalId": "n:1", "name": "Чайхана", "tags": []string{"south"}}, {"externalId": "n:3", "name": "МОЙ ЧАЙ"}}}), http.StatusOK)
	require.Equal(t, []any{"n:3", "Kiosk_I", "n:1"}, found("чай"))
	require.Empty(t, found("café"))
	require.Equal(t, http.StatusBadRequest, p.get("/locations?online=maybe").StatusCode)
	require.Equal(t, object{"deleted": true, "externalId": "n:1"}, ok[object](t, p.del("/locations/n:1"), http.StatusOK))
	refused(t, p.get("/locations/n:1"), http.StatusNotFound, "not_found")
	again := ok[object](t, p.post("/locations", object{"externalId": "n:1", "name": "Again"}), http.StatusCreated)
	require.Equal(t, made["userId"], again["userId"])
	refused(t, p.post("/locations/none/devices", nil), http.StatusNotFound, "not_found")
	refused(t, p.get("/locations/none/devices"), http.StatusNotFound, "not_found")
}

func imports(t *testing.T, w *world) {
	p := w.partner(t)
	p.location("i1")
	r := ok[struct {
		Created, Updated, Failed int
		Results                  []struct {
			ExternalID, Status string
			Error              *object
		}
	}](t, p.post("/locations/import", object{"locations": []object{{"externalId": "i1", "name": "One"}, {"externalId": "i2", "name": "Two"}, {"externalId": "bad id", "name": "x"}}}), http.StatusOK)
	require.Equal(t, []int{1, 1, 1}, []int{r.Created, r.Updated, r.Failed})
	require.Equal(t, "failed", r.Results[2].Status)
	require.NotNil(t, r.Results[2].Error)
	require.Nil(t, r.Results[0].Error)
	require.Equal(t, "One", ok[object](t, p.get("/locations/i1"), http.StatusOK)["name"])

	// What is wrong with a row is told with the row, whatever it is, and keeps no other back.
	type row struct {
		ExternalID, Status string
		Error              struct {
			Code, Message, Param string
			Fields               []struct{ Param, Code string }
		}
	}
	load := object{"locations": []any{
		object{"externalId": "i3", "name": 5, "tags": []any{"north", 7, ""}, "odd": 1}, 7, object{"externalId": "i4", "name": "Four"}, object{"name": "x"}, object{"name": "y"}, object{"externalId": 8},
		object{"externalId": "i3", "name": "Three"}, object{"externalId": "i3", "name": "Three again"},
	}}
	rows := ok[struct{ Results []row }](t, p.post("/locations/import", load, header{"Idempotency-Key", "rows"}), http.StatusOK).Results
	var told []string
	for _, r := range rows {
		fields := []string{}
		for _, f := range r.Error.Fields {
			fields = append(fields, f.Param+" "+f.Code)
		}
		told = append(told, strings.Join([]string{r.ExternalID, r.Status, r.Error.Code, r.Error.Param, strings.Join(fields, ", ")}, "|"))
	}
	require.Equal(t, []string{
		"i3|failed|invalid_format|name|name invalid_format, tags[1] invalid_format, odd invalid_format, tags[2] out_of_range",
		"|failed|invalid_format||",
		"i4|created|||",
		"|failed|missing_field|externalId|externalId missing_field",
		"|failed|missing_field|externalId|externalId missing_field",
		"|failed|invalid_format|externalId|externalId invalid_format, name missing_field",
		"i3|created|||",
		"i3|failed|already_exists|externalId|externalId already_exists",
	}, told)
	require.Equal(t, "name must be a string (and 3 more; see fields).", rows[0].Error.Message)
	again := p.post("/locations/import", load, header{"Idempotency-Key", "rows"})
	require.Equal(t, "true", again.Header.Get("Idempotency-Replayed"))
	require.Equal(t, rows, ok[struct{ Results []row }](t, again, http.StatusOK).Results)
	load["locations"].([]any)[1] = 8 //nolint:forcetypeassert // a test
	refused(t, p.post("/locations/import", load, header{"Idempotency-Key", "rows"}), http.StatusConflict, "conflict")

	refused(t, p.post("/locations/import", object{}), http.StatusBadRequest, "missing_field")
	refused(t, p.post("/locations/import", object{"locations": object{}}), http.StatusBadRequest, "invalid_format")
	refused(t, p.post("/locations/import", object{"locations": make([]int, 10_001)}), http.StatusBadRequest, "out_of_range")
}

func strangers(t *testing.T, w *world) {
	a, b := w.partner(t), w.partner(t)
	a.location("shop")
	audio := a.upload("private")
	sent := a.send(audio.AudioID, object{"all": true, "scheduleAt": time.Now().Add(time.Hour).Format(time.RFC3339)})
	for _, request := range [][3]string{
		{http.MethodGet, "/audio/", audio.AudioID}, {http.MethodDelete, "/audio/", audio.AudioID},
		{http.MethodGet, "/sends/", sent.SendID}, {http.MethodDelete, "/sends/", sent.SendID}, {http.MethodGet, "/locations/", "shop"}, {http.MethodDelete, "/locations/", "shop"},
	} {
		foreign := refused(t, b.call(request[0], request[1]+request[2], nil), http.StatusNotFound, "not_found")
		never := refused(t, b.call(request[0], request[1]+"aud_000000000000", nil), http.StatusNotFound, "not_found")
		foreign.Error.RequestID, never.Error.RequestID = "", ""
		require.Equal(t, never.Error, foreign.Error, "%v", request)
	}
	refused(t, b.get("/sends/"+sent.SendID+"/deliveries"), http.StatusNotFound, "not_found")
	refused(t, b.post("/audio/"+audio.AudioID+"/send", object{"all": true}), http.StatusNotFound, "not_found")
	for _, list := range []string{"/audio", "/sends", "/locations"} {
		require.Empty(t, ok[[]object](t, b.get(list), http.StatusOK))
	}
	test := a.as("hq", object{"environment": "dev"})
	require.True(t, strings.HasPrefix(test.token, "msk_test_"))
	tokenOf := func(p partner) string {
		return ok[struct{ TokenID string }](t, p.post("/test", nil), http.StatusOK).TokenID
	}
	live := tokenOf(a)
	for _, stranger := range []partner{b, test} {
		for _, body := range []object{{"token": a.token}, {"token": "msk_live_" + strings.Repeat("a", 43)}} {
			refused(t, stranger.call(http.MethodDelete, "/auth", body), http.StatusUnauthorized, "invalid_token")
		}
		for _, id := range []string{live, "tok_none", "\x00"} {
			refused(t, stranger.del("/tokens/"+url.PathEscape(id)), http.StatusNotFound, "not_found")
			told := refused(t, stranger.call(http.MethodDelete, "/auth", object{"tokenId": id}), http.StatusNotFound, "not_found")
			require.Equal(t, "There is no such token; find its ID in the list of tokens.", told.Error.Message)
		}
	}
	refused(t, a.del("/tokens/"+tokenOf(test)), http.StatusNotFound, "not_found")
	require.Empty(t, ok[[]object](t, test.get("/audio"), http.StatusOK))
	refused(t, test.get("/audio/"+audio.AudioID), http.StatusNotFound, "not_found")
}

func strangersTakeAsLong(t *testing.T, w *world) {
	a, b := w.partner(t), w.partner(t)
	rows := make([]object, 800)
	for i := range rows {
		rows[i] = object{"externalId": fmt.Sprint("shop_", i), "name": "x"}
	}
	ok[object](t, a.post("/locations/import", object{"locations": rows}), http.StatusOK)
	audio := a.upload("private")
	sent := a.send(audio.AudioID, object{"all": true})
	const never = "0000000000000000000000"
	for _, request := range [][3]string{
		{http.MethodGet, "/audio/", audio.AudioID}, {http.MethodDelete, "/audio/", audio.AudioID}, {http.MethodGet, "/locations/", "shop_1"}, {http.MethodDelete, "/locations/", "shop_1"},
		{http.MethodGet, "/sends/", sent.SendID}, {http.MethodDelete, "/sends/", sent.SendID},
	} {
		fastest := func(id string) time.Duration {
			least := time.Hour
			for range 10 {
				began := time.Now()
				refused(t, b.call(request[0], request[1]+id, nil), http.StatusNotFound, "not_found")
				least = min(least, time.Since(began))
			}
			return least
		}
		// The fastest of several is next to free of what else the machine does. A send to hundreds of shops is many times as long in the loading.
		require.Less(t, fastest(request[2]), 10*fastest(request[2][:4]+never), "%v", request)
	}
}

func limits(t *testing.T, w *world) {
	p := w.company(t, company.Standard).as("hq", object{})
	// A minute that ends amid the requests has two windows; then it is tried again with another token.
	for {
		began := time.Now().Truncate(time.Minute)
		var passed atomic.Int64
		var last sync.Map
		var all sync.WaitGroup
		for range 12 {
			all.Go(func() {
				for range 10 {
					if r := p.get("/audio"); r.StatusCode == http.StatusOK {
						passed.Add(1)
					} else {
						last.Store("refused", r)
					}
				}
			})
		}
		all.Wait()
		if !time.Now().Truncate(time.Minute).Equal(began) {
			p = p.as("hq", object{})
			continue
		}
		require.Equal(t, int64(100), passed.Load())
		found, _ := last.Load("refused")
		r := found.(reply) //nolint:forcetypeassert // a test
		e := refused(t, r, http.StatusTooManyRequests, "rate_limit_exceeded")
		require.Equal(t, number(t, r.Header.Get("Retry-After")), e.Error.RetryAfter)
		require.Positive(t, e.Error.RetryAfter)
		require.LessOrEqual(t, e.Error.RetryAfter, 60)
		require.Equal(t, "100", r.Header.Get("X-RateLimit-Limit"))
		require.Equal(t, "0", r.Header.Get("X-RateLimit-Remaining"))
		break
	}
	fresh := p.as("other", object{})
	got := ok[struct {
		Plan                     string
		Limits, Usage, Remaining map[string]int
		ResetAt                  map[string]time.Time
		Quota                    map[string]any
	}](t, fresh.get("/limits"), http.StatusOK)
	require.Equal(t, "standard", got.Plan)
	require.Equal(t, map[string]int{"perMinute": 100, "perHour": 1000, "perDay": 10000, "uploadsPerHour": 60, "uploadBytes": 10 << 20}, got.Limits)
	require.Equal(t, 100, got.Usage["perMinute"]+got.Remaining["perMinute"])
	require.Equal(t, 1, got.Usage["perHour"])
	require.True(t, got.ResetAt["perMinute"].After(time.Now().Add(-time.Second)))
	require.Subset(t, sortedKeys(got.Quota), []string{"sends", "storageBytes", "uploads"})
}

func quotas(t *testing.T, w *world) {
	config := w.config
	config.Plans = maps.Clone(w.config.Plans)
	small := config.Plans[company.Unlimited]
	small.MonthlyUploads, small.MonthlySends, small.StorageBytes = 1, 1, 20_000
	config.Plans[company.Plus] = small
	_, url, _ := w.serve(t, config)
	p := w.company(t, company.Plus).as("hq", object{})
	p.location("till")
	post := func(path string, body any) reply { return call(t, http.MethodPost, url+v1+path, p.token, body) }
	upload := func(seconds float64) reply {
		return post("/audio", form{{name: "name", value: "x"}, {name: "file", file: wav(seconds, 440)}})
	}
	left := time.Until(time.Now().UTC().AddDate(0, 1, 1-time.Now().UTC().Day()).Truncate(24 * time.Hour)).Seconds()
	e := refused(t, upload(2), http.StatusTooManyRequests, "quota_exceeded")
	require.Equal(t, "storageBytes", e.Error.Details["quota"])
	require.Zero(t, e.Error.RetryAfter, "no time that passes makes room")
	audio := ok[uploaded](t, upload(0.1), http.StatusCreated)
	again := upload(0.1)
	e = refused(t, again, http.StatusTooManyRequests, "quota_exceeded")
	require.Equal(t, "rate_limit_error", e.Error.Type)
	require.Equal(t, "uploads", e.Error.Details["quota"])
	require.InDelta(t, 1, e.Error.Details["used"], 0)
	require.InDelta(t, left, e.Error.RetryAfter, 60, "the month's end renews it")
	require.Equal(t, e.Error.RetryAfter, number(t, again.Header.Get("Retry-After")))
	send := object{"all": true}
	ok[accepted](t, post("/audio/"+audio.AudioID+"/send", send), http.StatusAccepted)
	require.Equal(t, "sends", refused(t, post("/audio/"+audio.AudioID+"/send", send), http.StatusTooManyRequests, "quota_exceeded").Error.Details["quota"])
	quota := ok[struct {
		Quota map[string]any
	}](t, call(t, http.MethodGet, url+v1+"/limits", p.token, nil), http.StatusOK).Quota
	require.Equal(t, object{"limit": 1.0, "used": 1.0, "remaining": 0.0}, quota["sends"])
	require.Equal(t, object{"limit": 1.0, "used": 1.0, "remaining": 0.0}, quota["uploads"])
}

type logged struct {
	RequestID, Method, Path, Endpoint, ErrorCode, IP, ExternalID string
	Status                                                       int
}

func logs(t *testing.T, w *world) {
	p := w.partner(t)
	miss := p.get("/audio/aud_doesnotexist")
	refused(t, miss, http.StatusNotFound, "not_found")
	refused(t, p.get("/nowhere/"+p.token), http.StatusNotFound, "not_found")
	eventually(t, "the requests are not in the logs", func() bool {
		return len(ok[[]logged](t, p.get("/logs?status=4xx"), http.StatusOK)) == 2
	})
	rows := ok[[]logged](t, p.get("/logs?status=404&requestId="+miss.Header.Get("X-Request-Id")), http.StatusOK)
	require.Len(t, rows, 1)
	require.Equal(t, "not_found", rows[0].ErrorCode)
	require.Equal(t, "/api/v1/integration/audio/{audioId}", rows[0].Endpoint)
	require.Equal(t, "/api/v1/integration/audio/aud_doesnotexist", rows[0].Path)
	require.Equal(t, "hq", rows[0].ExternalID)
	all := p.get("/logs?limit=100&startDate=" + time.Now().UTC().Format(time.DateOnly))
	require.Equal(t, http.StatusOK, all.StatusCode)
	require.NotContains(t, string(all.body), p.token[9:], "the logs show a token")
	require.Empty(t, ok[[]logged](t, p.get("/logs?endDate=2020-01-01"), http.StatusOK))
	for _, bad := range []string{"status=9xx", "status=40", "startDate=soon", "method=FETCH"} {
		require.Equal(t, http.StatusBadRequest, p.get("/logs?"+bad).StatusCode, bad)
	}
}

func logsSurviveAStop(t *testing.T, w *world) {
	p := w.partner(t)
	api, url, _ := w.serve(t, w.config)
	const requests = 25
	for range requests {
		ok[[]object](t, call(t, http.MethodGet, url+v1+"/sends", p.token, nil), http.StatusOK)
	}
	api.Drain()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	require.NoError(t, api.Close(ctx))
	eventually(t, "requests were lost", func() bool {
		return len(ok[[]logged](t, p.get("/logs?limit=100&endpoint="+v1+"/sends"), http.StatusOK)) == requests
	})
}

func health(t *testing.T, w *world) {
	p := w.partner(t)
	type state struct {
		Status, Version string
		Services        map[string]string
	}
	got := ok[state](t, p.get("/health"), http.StatusOK)
	require.Equal(t, state{"healthy", "test", map[string]string{"database": "healthy", "storage": "healthy", "messaging": "healthy", "eventStore": "healthy"}}, got)
	refused(t, call(t, http.MethodGet, w.url+v1+"/health", "", nil), http.StatusUnauthorized, "invalid_token")

	config := w.config
	config.Checks.Messaging = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() } // one that never answers
	_, url, ops := w.serve(t, config)
	got = ok[state](t, call(t, http.MethodGet, url+v1+"/health", p.token, nil), http.StatusOK)
	require.Equal(t, "degraded", got.Status)
	require.Equal(t, "down", got.Services["messaging"])
	require.Equal(t, http.StatusOK, call(t, http.MethodGet, ops+"/readyz", "", nil).StatusCode)

	config = w.config
	config.Checks.Database = func(context.Context) error { return errors.New("away") }
	_, url, ops = w.serve(t, config)
	require.Equal(t, "down", ok[state](t, call(t, http.MethodGet, url+v1+"/health", p.token, nil), http.StatusOK).Status)
	require.Equal(t, http.StatusServiceUnavailable, call(t, http.MethodGet, ops+"/readyz", "", nil).StatusCode)
}

func healthInSilence(t *testing.T, w *world) {
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0") // connections are made, and nothing is said
	require.NoError(t, err)
	t.Cleanup(func() { listener.Close() })
	config := w.config
	config.Pool, err = postgres.Connect(t.Context(), "postgres://musique@"+listener.Addr().String()+"/musique?sslmode=disable")
	require.NoError(t, err)
	t.Cleanup(config.Pool.Close)
	config.Checks.Database = config.Pool.Ping
	_, url, _ := w.serve(t, config)
	began := time.Now()
	got := ok[struct {
		Status   string
		Services map[string]string
	}](t, call(t, http.MethodGet, url+v1+"/health", "msk_live_"+strings.Repeat("a", 43), nil), http.StatusOK)
	require.Equal(t, "down", got.Status)
	require.Equal(t, "down", got.Services["database"])
	require.Equal(t, "healthy", got.Services["eventStore"])
	require.Less(t, time.Since(began), 5*time.Second, "whoever watches the health does not wait for ever")
	r := call(t, http.MethodGet, url+v1+"/audio", "msk_live_"+strings.Repeat("a", 43), nil)
	refused(t, r, http.StatusServiceUnavailable, "service_unavailable")
	require.NotEmpty(t, r.Header.Get("Retry-After"))
}

func operators(t *testing.T, w *world) {
	p := w.partner(t)
	metrics := call(t, http.MethodGet, w.ops+"/metrics", "", nil)
	require.Equal(t, http.StatusOK, metrics.StatusCode)
	require.Contains(t, string(metrics.body), `musique_http_requests_total{operation="GenerateToken",status="201"}`)
	type row struct {
		CompanyID, Name, Plan string
		Suspended             bool
	}
	find := func() row {
		for _, c := range ok[[]row](t, call(t, http.MethodGet, w.ops+"/ops/companies", "", nil), http.StatusOK) {
			if c.CompanyID == p.companyID {
				return c
			}
		}
		return row{}
	}
	require.Equal(t, company.Unlimited, find().Plan)
	do := func(action string, body any) reply {
		return call(t, http.MethodPost, w.ops+"/ops/companies/"+p.companyID+"/"+action, "", body)
	}
	ok[object](t, do("set-plan", object{"plan": "plus"}), http.StatusOK)
	require.Equal(t, company.Plus, find().Plan)
	require.Equal(t, "600", p.get("/audio").Header.Get("X-RateLimit-Limit"))
	require.Equal(t, http.StatusBadRequest, do("set-plan", object{"plan": "golden"}).StatusCode)
	refused(t, do("set-plan", object{}), http.StatusBadRequest, "missing_field")
	refused(t, call(t, http.MethodPost, w.ops+"/ops/companies/co_none/suspend", "", nil), http.StatusNotFound, "not_found")
	refused(t, call(t, http.MethodPost, w.ops+"/ops/companies", "", object{"name": ""}), http.StatusBadRequest, "missing_field")
	rotated := ok[struct{ CompanyToken string }](t, do("rotate-token", nil), http.StatusOK)
	refused(t, call(t, http.MethodPost, w.url+v1+"/auth", "", object{"externalId": "x", "companyToken": p.companyToken}), http.StatusUnauthorized, "invalid_token")
	p.companyToken = rotated.CompanyToken
	p.as("x", object{})
	ok[object](t, do("suspend", object{"reason": "unpaid"}), http.StatusOK)
	refused(t, p.get("/audio"), http.StatusUnauthorized, "invalid_token")
	require.True(t, find().Suspended)
	projections := ok[[]struct{ Name string }](t, call(t, http.MethodGet, w.ops+"/ops/projections", "", nil), http.StatusOK)
	require.Len(t, projections, 6)
	refused(t, call(t, http.MethodGet, w.ops+"/ops/nowhere", "", nil), http.StatusNotFound, "not_found")

	// Without a token, a browser is not let in, whatever page sent it.
	require.Equal(t, http.StatusForbidden, call(t, http.MethodPost, w.ops+"/ops/companies/"+p.companyID+"/suspend", "", nil, header{"Origin", "https://evil.example"}).StatusCode)
	config := w.config
	config.OpsToken = "secret"
	_, _, guarded := w.serve(t, config)
	refused(t, call(t, http.MethodGet, guarded+"/ops/companies", "", nil), http.StatusUnauthorized, "invalid_token")
	refused(t, call(t, http.MethodGet, guarded+"/ops/companies", "", nil, header{"Authorization", "Bearer wrong"}), http.StatusUnauthorized, "invalid_token")
	ok[[]row](t, call(t, http.MethodGet, guarded+"/ops/companies", "", nil, header{"Authorization", "Bearer secret"}), http.StatusOK)
	for path, status := range map[string]int{"/ops/companies": http.StatusNoContent, "/ops/nowhere": http.StatusNotFound} {
		refused(t, call(t, http.MethodOptions, guarded+path, "", nil), http.StatusUnauthorized, "invalid_token")
		require.Equal(t, status, call(t, http.MethodOptions, guarded+path, "", nil, header{"Authorization", "Bearer secret"}).StatusCode)
	}
	refused(t, call(t, http.MethodPut, guarded+"/ops/companies", "", nil), http.StatusUnauthorized, "invalid_token")
	require.Equal(t, http.StatusOK, call(t, http.MethodGet, guarded+"/livez", "", nil).StatusCode)
}

func sortedKeys[V any](m map[string]V) []string {
	all := make([]string, 0, len(m))
	for k := range m {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}
