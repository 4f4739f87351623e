package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/location"
)

// demoKey is the Idempotency-Key of all that the demo makes: a second start finds the same company, and can show its token again, since that follows
// from the key and the secret key.
const demoKey = "demo"

// demoMarker is the file that says that this data folder has the demo company.
const demoMarker = "demo"

var demoLocations = []struct{ externalID, name, timezone string }{
	{"store_001", "Flagship store", "Europe/Berlin"},
	{"store_002", "Airport store", "America/New_York"},
	{"store_003", "Night market", "Asia/Tokyo"},
}

// demoCompany is what a newcomer can begin with.
type demoCompany struct {
	companyID, companyToken string
}

// demo makes the demo company on a first run with everything embedded, and finds it again on later ones. It is nil where there is none that a newcomer
// could use.
func (a *app) demo(ctx context.Context) (*demoCompany, error) {
	if !a.config.demo || !a.parts.allEmbedded {
		return nil, nil
	}
	marker := filepath.Join(a.config.dataDir, demoMarker)
	if _, err := os.Stat(marker); errors.Is(err, os.ErrNotExist) {
		head, err := a.parts.store.Head(ctx)
		if err != nil {
			return nil, fmt.Errorf("demo company: %w", err)
		}
		if !head.IsZero() {
			return nil, nil // not a first run: somebody's companies are here
		}
		if err := os.WriteFile(marker, []byte("This data folder has the demo company.\n"), 0o600); err != nil {
			return nil, fmt.Errorf("demo company: %w", err)
		}
	}
	caller := commands.Caller{Actor: "operator", RequestID: "demo", IdempotencyKey: demoKey}
	made, err := a.commands.RegisterCompany.Handle(ctx, commands.RegisterCompany{Caller: caller, Name: "Demo company"})
	if fault.CodeOf(err) == fault.Conflict {
		return nil, nil // it is there, and the secret key that its token follows from is not
	}
	if err != nil {
		return nil, fmt.Errorf("demo company: %w", err)
	}
	for _, l := range demoLocations {
		caller := commands.Caller{CompanyID: made.CompanyID, Environment: event.Live, Actor: "operator", RequestID: "demo", IdempotencyKey: demoKey + ":" + l.externalID}
		_, err := a.commands.RegisterLocation.Handle(ctx, commands.RegisterLocation{
			Caller: caller, ExternalID: l.externalID,
			Details: location.Details{Name: l.name, Timezone: l.timezone, Tags: []string{"demo"}},
		})
		// A location that its user removed, or changed the ID's key of, is left as it is.
		if code := fault.CodeOf(err); err != nil && code != fault.AlreadyExists && code != fault.Conflict {
			return nil, fmt.Errorf("demo location %s: %w", l.externalID, err)
		}
	}
	history, err := a.parts.store.Load(ctx, company.Stream(made.CompanyID))
	if err != nil {
		return nil, fmt.Errorf("demo company: %w", err)
	}
	state, err := company.Load(history)
	if err != nil {
		return nil, fmt.Errorf("demo company: %w", err)
	}
	if state.Suspended || !slices.Contains(a.parts.keys.Hashes(made.CompanyToken), state.TokenHash) {
		return nil, nil // an operator suspended it, or gave it another token: that one was shown only then
	}
	return &demoCompany{made.CompanyID, made.CompanyToken}, nil
}

// banner is what a person sees when the server is ready.
func banner(at readyLine, demo *demoCompany) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\nMusique %s is ready.\n\n", version)
	if at.HTTP != "" {
		fmt.Fprintf(&b, "  Partner API   http://%s/api/v1/integration\n", at.HTTP)
	}
	fmt.Fprintf(&b, "  Operators     http://%s/metrics\n  Event store   %s\n  Kafka         %s\n", at.Ops, at.EventStore, at.Kafka)
	if demo == nil || at.HTTP == "" {
		return b.String() + "\n"
	}
	fmt.Fprintf(&b, `
A demo company with the locations store_001, store_002 and store_003 is there. Its company token:

  %[2]s

Try it, in another terminal:

  # an API token
  TOKEN=$(curl -s http://%[1]s/api/v1/integration/auth -H 'Content-Type: application/json' \
    -d '{"externalId":"store_001","companyToken":"%[2]s"}' | sed -E 's/.*"token":"([^"]+)".*/\1/')

  # upload the sample
  AUDIO=$(curl -s http://%[1]s/api/v1/integration/audio -H "X-API-Key: $TOKEN" \
    -F name=Welcome -F file=@samples/welcome.mp3 | sed -E 's/.*"audioId":"([^"]+)".*/\1/')

  # a player at store_001
  DEVICE=$(curl -s http://%[1]s/api/v1/integration/locations/store_001/devices -H "X-API-Key: $TOKEN" \
    -H 'Content-Type: application/json' -d '{}' | sed -E 's/.*"token":"([^"]+)".*/\1/')
  bin/musique player --server http://%[1]s --device-token "$DEVICE" &

  # send, and hear
  curl -s http://%[1]s/api/v1/integration/audio/$AUDIO/send -H "X-API-Key: $TOKEN" \
    -H 'Content-Type: application/json' -d '{"externalIds":["store_001"]}'

`, at.HTTP, demo.companyToken)
	return b.String()
}
