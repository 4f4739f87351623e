// Package commandstest gives tests all commands on real parts: an event store, a database in which the projections run, blob storage and keys. Tests
// share what they can and have companies of their own.
package commandstest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"log/slog"
	"math"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/blobs"
	"github.com/musique/musique/infra/esnode"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/keys"
	"github.com/musique/musique/infra/postgres/postgrestest"
	"github.com/musique/musique/projections"
)

// Patience bounds the wait for what happens beside a call. Nothing takes that long unless it fails.
const Patience = 30 * time.Second

// Quiet is a log that nobody reads.
var Quiet = slog.New(slog.DiscardHandler)

// World is the commands on parts of their own, of which the event store may be shared.
type World struct {
	commands.Deps
	Pool     *pgxpool.Pool
	Commands *commands.Handlers
	// Reads are those of Deps, with all that they answer.
	Reads *projections.Reads
	// BlobDir is the folder of the blob storage.
	BlobDir string
}

// Store is an event store of the test's own. What stands in a store that is shared every world has to read.
func Store(t testing.TB) *eventstore.Store {
	t.Helper()
	store, _ := MortalStore(t)
	return store
}

// MortalStore is a Store whose node can be stopped before the test ends.
func MortalStore(t testing.TB) (store *eventstore.Store, stop func()) {
	t.Helper()
	node, err := esnode.Start(esnode.Options{Dir: filepath.Join(t.TempDir(), "events"), Listen: "127.0.0.1:0", Log: Quiet})
	require.NoError(t, err)
	stop = sync.OnceFunc(func() { require.NoError(t, node.Close()) })
	t.Cleanup(stop)
	store, err = eventstore.Open(node.ConnectionString(), Quiet)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	return store, stop
}

// New makes a world over an event store, with its projections running until the test ends.
func New(t testing.TB, store *eventstore.Store) *World {
	t.Helper()
	w := Still(t, store)
	w.Project(t)
	return w
}

// Still makes a world whose read models stand still until Project is called.
func Still(t testing.TB, store *eventstore.Store) *World {
	t.Helper()
	pool := postgrestest.New(t)
	require.NoError(t, projections.Migrate(t.Context(), pool))
	ring, err := keys.Open(t.TempDir(), "")
	require.NoError(t, err)
	dir := t.TempDir()
	folder, err := blobs.FolderURL(dir)
	require.NoError(t, err)
	bytesStore, err := blobs.Open(t.Context(), folder)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, bytesStore.Close()) })
	positions := projections.NewPositions(pool, Quiet)
	Run(t, positions.Run)
	reads := projections.NewReads(pool, positions)
	deps := commands.Deps{Store: store, Blobs: bytesStore, Keys: ring, Reads: reads, Plans: company.DefaultPlans(), Now: time.Now, Log: Quiet}
	return &World{Deps: deps, Pool: pool, Commands: commands.New(deps), Reads: reads, BlobDir: dir}
}

// Project keeps the read models in step until the test ends, or stop is called.
func (w *World) Project(t testing.TB) (stop func()) {
	t.Helper()
	return Run(t, projections.NewRunner(projections.RunnerConfig{Store: w.Store, Pool: w.Pool, Log: Quiet}).Run)
}

// Hold keeps the read models where they are until release is called; they go on at once then.
func (w *World) Hold(t testing.TB) (release func()) {
	t.Helper()
	w.Settle(t)
	tx, err := w.Pool.Begin(context.Background())
	require.NoError(t, err)
	_, err = tx.Exec(context.Background(), "SELECT FROM projections.checkpoint FOR UPDATE")
	require.NoError(t, err)
	release = sync.OnceFunc(func() { require.NoError(t, tx.Rollback(context.Background())) })
	t.Cleanup(release)
	return release
}

// Settle waits until the read models know all that commands wrote: on a slow machine a command may answer before that.
func (w *World) Settle(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	newest, err := projections.Head(ctx, w.Store)
	require.NoError(t, err)
	for {
		err := w.Reads.WaitFor(ctx, newest, commands.Tokens, commands.Locations, commands.Library, commands.Sends)
		if err == nil {
			return
		}
		require.NoError(t, ctx.Err(), err)
	}
}

// At gives the commands with another clock.
func (w *World) At(now func() time.Time) *commands.Handlers {
	deps := w.Deps
	deps.Now = now
	return commands.New(deps)
}

// Run runs what runs until its context ends, until the test ends or stop is called; stop waits for its end.
func Run(t testing.TB, work ...func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running errgroup.Group
	for _, one := range work {
		running.Go(func() error { return one(ctx) })
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := running.Wait(); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("what ran beside the test ended: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// Partner is a company of a test.
type Partner struct {
	*World
	CompanyID    string
	CompanyToken string
}

// Partner makes a company.
func (w *World) Partner(t testing.TB) Partner {
	t.Helper()
	made, err := w.Commands.RegisterCompany.Handle(t.Context(), commands.RegisterCompany{
		Caller: commands.Caller{Actor: "operator"}, Name: "Company " + uuid.NewString(), Plan: company.Unlimited,
	})
	require.NoError(t, err)
	w.Settle(t)
	return Partner{World: w, CompanyID: made.CompanyID, CompanyToken: made.CompanyToken}
}

// Caller is the company's caller on live data.
func (p Partner) Caller() commands.Caller {
	return commands.Caller{
		CompanyID: p.CompanyID, Environment: event.Live, Actor: "tok_test", RequestID: uuid.NewString(), Plan: p.Plans[company.Unlimited],
	}
}

// Keyed is Caller with an Idempotency-Key.
func (p Partner) Keyed(key string) commands.Caller {
	c := p.Caller()
	c.IdempotencyKey = key
	return c
}

// Sandbox is the company's caller on test data.
func (p Partner) Sandbox() commands.Caller {
	c := p.Caller()
	c.Environment = event.Test
	return c
}

// Register registers a location for a caller.
func (p Partner) Register(t testing.TB, c commands.Caller, externalID string) location.Location {
	t.Helper()
	made, err := p.Commands.RegisterLocation.Handle(t.Context(), commands.RegisterLocation{Caller: c, ExternalID: externalID, Details: location.Details{Name: externalID}})
	require.NoError(t, err)
	return made.Location
}

// Locations registers live locations.
func (p Partner) Locations(t testing.TB, externalIDs ...string) {
	t.Helper()
	for _, id := range externalIDs {
		p.Register(t, p.Caller(), id)
	}
	p.Settle(t)
}

// Import registers many live locations.
func (p Partner) Import(t testing.TB, externalIDs ...string) {
	t.Helper()
	rows := make([]commands.ImportedLocation, len(externalIDs))
	for i, id := range externalIDs {
		rows[i] = commands.ImportedLocation{ExternalID: id, Details: location.Details{Name: id}}
	}
	results, _, err := p.Commands.ImportLocations.Handle(t.Context(), commands.ImportLocations{Caller: p.Caller(), Locations: rows})
	require.NoError(t, err)
	for _, r := range results {
		require.Equal(t, commands.ImportCreated, r.Status, r.Err)
	}
	p.Settle(t)
}

// Upload uploads a sound for a caller and gives the ID of the audio.
func (p Partner) Upload(t testing.TB, c commands.Caller) string {
	t.Helper()
	made, err := p.Commands.UploadAudio.Handle(t.Context(), Uploading(c, Sound(200*time.Millisecond)))
	require.NoError(t, err)
	return made.AudioID
}

// Uploading is the command that uploads a file.
func Uploading(c commands.Caller, file []byte) commands.UploadAudio {
	sum := sha256.Sum256(file)
	return commands.UploadAudio{
		Caller: c, Details: audio.Details{Name: "Opening"}, File: bytes.NewReader(file), Size: int64(len(file)), SHA256: hex.EncodeToString(sum[:]),
	}
}

// Send sends audio to live locations.
func (p Partner) Send(t testing.TB, audioID string, externalIDs ...string) send.Send {
	t.Helper()
	return p.SendAs(t, p.Caller(), audioID, send.Request{Targets: send.Targets{ExternalIDs: externalIDs}})
}

// SendAs sends audio as a caller asks for it.
func (p Partner) SendAs(t testing.TB, c commands.Caller, audioID string, request send.Request) send.Send {
	t.Helper()
	sent, err := p.Commands.SendAudio.Handle(t.Context(), commands.SendAudio{Caller: c, AudioID: audioID, Request: request})
	require.NoError(t, err)
	return sent.Send
}

// History is a stream of the event store.
func (w *World) History(t testing.TB, stream string) []event.Recorded {
	t.Helper()
	history, err := w.Store.Load(context.WithoutCancel(t.Context()), stream)
	require.NoError(t, err)
	return history
}

// Types lists the types of a stream's events.
func (w *World) Types(t testing.TB, stream string) []string {
	t.Helper()
	types := []string{}
	for _, e := range w.History(t, stream) {
		types = append(types, e.Type)
	}
	return types
}

// BlobKeys lists what lies in the blob storage of a company.
func (p Partner) BlobKeys(t testing.TB) []string {
	t.Helper()
	found := []string{}
	require.NoError(t, p.Blobs.Each(t.Context(), "audio/"+p.CompanyID+"/", func(key string, _ time.Time) error {
		found = append(found, key)
		return nil
	}))
	return found
}

// Sound is a WAV file: a mono 16-bit sine at 8 kHz.
func Sound(length time.Duration) []byte {
	const rate, pitch = 8000, 440
	samples := make([]int16, int(length.Seconds()*rate))
	for i := range samples {
		samples[i] = int16(12000 * math.Sin(2*math.Pi*pitch*float64(i)/rate))
	}
	le := binary.LittleEndian
	b := append([]byte("RIFF"), le.AppendUint32(nil, uint32(36+2*len(samples)))...)
	b = append(b, "WAVEfmt "...)
	for _, v := range []any{uint32(16), uint16(1), uint16(1), uint32(rate), uint32(2 * rate), uint16(2), uint16(16)} {
		b, _ = binary.Append(b, le, v) // numbers never fail
	}
	b = le.AppendUint32(append(b, "data"...), uint32(2*len(samples)))
	b, _ = binary.Append(b, le, samples)
	return b
}
