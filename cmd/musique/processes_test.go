package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/infra/blobs"
	"github.com/musique/musique/infra/postgres/postgrestest"
)

// Two processes, of which one has the parts and all roles and the other serves the API with the same parts, are one service: amid a rotation of the secret key, too.
func TestTwoProcesses(t *testing.T) {
	t.Parallel()
	database, dir := postgrestest.URL(t), filepath.Join(t.TempDir(), "data")
	folder, err := blobs.FolderURL(filepath.Join(dir, "blobs"))
	require.NoError(t, err)
	older, newer := strings.Repeat("a1", 32), strings.Repeat("b2", 32)
	one := serveOn(t, dir, "--database", database, "--secret-key", older+","+newer)
	var parts struct{ EventStore, Kafka string }
	require.NoError(t, json.Unmarshal([]byte(one.awaits(&one.stderr, `(?m)^\{.*"msg":"ready".*\}$`)[0]), &parts))
	two := serveOn(t, filepath.Join(t.TempDir(), "data"), "--roles", "api", "--database", database, "--eventstore", parts.EventStore, "--kafka", parts.Kafka,
		"--blobs", folder, "--secret-key", newer+","+older)
	servers := []*server{one, two}
	made := operator[companyMade](two, "company", "create", "--name", "Acme")
	busy := operator[companyMade](one, "company", "create", "--name", "Busy", "--plan", "unlimited")

	// Limits are those of both together. A minute that ends amid the requests has two windows: then it is tried again, with another token.
	for attempt := 0; ; attempt++ {
		caller := one.signIn(t, made.CompanyToken, fmt.Sprint("till_", attempt))
		minute := time.Now().Truncate(time.Minute)
		answers := make([]answer, 150)
		var asking sync.WaitGroup
		for i := range answers {
			asking.Go(func() {
				got, err := caller.on(servers[i%2]).try(t.Context(), http.MethodPost, "/test", "application/json", "", nil)
				if err != nil {
					t.Error(err)
				}
				answers[i] = got
			})
		}
		asking.Wait()
		if !time.Now().Truncate(time.Minute).Equal(minute) {
			continue
		}
		var remaining []int
		for _, got := range answers {
			require.Equal(t, "100", got.header.Get("X-RateLimit-Limit"))
			if got.status != http.StatusOK {
				got.refused(http.StatusTooManyRequests, "rate_limit_exceeded")
				require.NotEmpty(t, got.header.Get("Retry-After"))
				continue
			}
			left, err := strconv.Atoi(got.header.Get("X-RateLimit-Remaining"))
			require.NoError(t, err)
			remaining = append(remaining, left)
		}
		slices.Sort(remaining)
		require.Len(t, slices.Compact(remaining), 100)
		require.Len(t, remaining, 100)
		break
	}

	admin := one.signIn(t, busy.CompanyToken, "admin")
	for round := range 6 {
		here, there := servers[round%2], servers[(round+1)%2]
		writer, reader := admin.on(here), admin.on(there)

		// What is revoked here is refused there.
		till := here.signIn(t, busy.CompanyToken, "till")
		id := want[struct{ TokenID string }](till.on(there).post("/test", nil), http.StatusOK).TokenID
		revoke := []func() answer{
			func() answer { return till.on(here).call(http.MethodDelete, "/auth", nil) },
			func() answer { return writer.call(http.MethodDelete, "/auth", object{"token": till.token}) },
			func() answer { return writer.call(http.MethodDelete, "/tokens/"+id, nil) },
		}[round%3]
		want[object](revoke(), http.StatusOK)
		till.on(there).get("/audio").refused(http.StatusUnauthorized, "invalid_token")

		// What is written here is read there.
		place := fmt.Sprint("store_", round)
		writer.location(place)
		want[object](writer.call(http.MethodPatch, "/locations/"+place, object{"name": "Renamed"}), http.StatusOK)
		require.Equal(t, "Renamed", want[object](reader.get("/locations/"+place), http.StatusOK)["name"])
		want[object](writer.post("/locations/import", object{"locations": []object{{"externalId": place, "name": "Imported"}}}), http.StatusOK)
		require.Equal(t, "Imported", want[object](reader.get("/locations/"+place), http.StatusOK)["name"])
		audioID := writer.upload("Brief", aSecond())
		heard := want[struct{ URL string }](reader.get("/audio/"+audioID), http.StatusOK)
		media, err := http.Get(strings.Replace(heard.URL, there.url, here.url, 1)) // what the one has signed, the other serves
		require.NoError(t, err)
		require.NoError(t, media.Body.Close())
		require.Equal(t, http.StatusOK, media.StatusCode)
		sendID := writer.send(audioID, place)
		require.Len(t, reader.deliveries(sendID), 1)
		want[object](writer.call(http.MethodDelete, "/sends/"+sendID, nil), http.StatusOK)
		require.Equal(t, "cancelled", want[object](reader.get("/sends/"+sendID), http.StatusOK)["status"])
		want[object](writer.call(http.MethodDelete, "/audio/"+audioID, nil), http.StatusOK)
		reader.get("/audio/"+audioID).refused(http.StatusNotFound, "not_found")

		// What arrives at both runs once.
		body := fmt.Appendf(nil, `{"externalId": "keyed", "companyToken": %q}`, busy.CompanyToken)
		answers := make([]answer, 4)
		var asking sync.WaitGroup
		for i := range answers {
			asking.Go(func() {
				got, err := api{t: t, url: servers[i%2].url}.try(t.Context(), http.MethodPost, "/auth", "application/json", fmt.Sprint("key ", round), body)
				if err != nil {
					t.Error(err)
				}
				answers[i] = got
			})
		}
		asking.Wait()
		ran := 0
		for _, got := range answers {
			require.Equal(t, want[object](answers[0], http.StatusCreated), want[object](got, http.StatusCreated))
			if got.header.Get("Idempotency-Replayed") == "" {
				ran++
			}
		}
		require.Equal(t, 1, ran)
	}

	// What an operator does at the one holds at the other.
	rotated := operator[companyMade](two, "company", "rotate-token", busy.CompanyID)
	api{t: t, url: one.url}.post("/auth", object{"externalId": "x", "companyToken": busy.CompanyToken}).refused(http.StatusUnauthorized, "invalid_token")
	one.signIn(t, rotated.CompanyToken, "x")
	require.NotEmpty(t, operator[object](one, "company", "suspend", busy.CompanyID))
	admin.on(two).get("/audio").refused(http.StatusUnauthorized, "invalid_token")
	two.terminate()
	one.terminate()
}
