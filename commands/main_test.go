package commands_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/eventstore/storetest"
)

// world is what all tests share.
var world *commandstest.World

func TestMain(m *testing.M) {
	os.Exit(commandstest.Main(m, func(t testing.TB) { world = commandstest.New(t, storetest.Open(t)) }))
}

// refused checks that an error is one that callers are told, and gives it.
func refused(t *testing.T, err error, code fault.Code) fault.Error {
	t.Helper()
	require.Error(t, err)
	var told *fault.Error
	require.ErrorAs(t, err, &told, "%v", err)
	require.Equal(t, code, told.Code, told.Message)
	require.NotEmpty(t, told.Message)
	return *told
}

// attempt is what came of one of several calls.
type attempt[T any] struct {
	result T
	err    error
}

// atOnce makes n calls that begin at the same moment.
func atOnce[T any](n int, call func(i int) (T, error)) []attempt[T] {
	attempts := make([]attempt[T], n)
	var ready, done sync.WaitGroup
	start := make(chan struct{})
	ready.Add(n)
	for i := range attempts {
		done.Go(func() {
			ready.Done()
			<-start
			attempts[i].result, attempts[i].err = call(i)
		})
	}
	ready.Wait()
	close(start)
	done.Wait()
	return attempts
}

// text is a result as JSON: what a caller can tell of it.
func text(t *testing.T, result any) string {
	t.Helper()
	raw, err := json.Marshal(result)
	require.NoError(t, err)
	return string(raw)
}

// names makes external IDs.
func names(prefix string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("%s_%05d", prefix, i)
	}
	return all
}

// lasting is a context that goes on when its test is over: what was begun is finished.
func lasting(ctx context.Context) context.Context { return context.WithoutCancel(ctx) }

func count(history []event.Recorded, eventType string) (n int) {
	for _, e := range history {
		if e.Type == eventType {
			n++
		}
	}
	return n
}

// propose is events as a handler appends them.
func propose(p commandstest.Partner, at time.Time, payloads ...event.Payload) []event.Proposed {
	events := make([]event.Proposed, len(payloads))
	for i, payload := range payloads {
		events[i] = event.Proposed{ID: uuid.New(), Payload: payload, Metadata: event.Metadata{CompanyID: p.CompanyID, Environment: event.Live, Time: at}}
	}
	return events
}

// planned is what a send records.
func planned(t *testing.T, p commandstest.Partner, sendID string, cmd commands.SendAudio) []event.Payload {
	t.Helper()
	to, unknown, err := p.Reads.Destinations(t.Context(), p.CompanyID, cmd.Caller.Environment, cmd.Request.Targets)
	require.NoError(t, err)
	require.Empty(t, unknown)
	payloads, err := send.Plan(sendID, cmd.Request.Terms(cmd.AudioID), cmd.Request, to, time.Now().UTC())
	require.NoError(t, err)
	return payloads
}
