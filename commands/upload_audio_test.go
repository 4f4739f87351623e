package commands_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/infra/blobs"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/projections/audiolibrary"
)

func library(t *testing.T, p commandstest.Partner) (items []audiolibrary.Item) {
	t.Helper()
	items, _, err := audiolibrary.List(t.Context(), p.Pool, p.CompanyID, event.Live, audiolibrary.Filter{}, "", 100)
	require.NoError(t, err)
	return items
}

func TestAnUploadIsStoredAsItCame(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	file := commandstest.Sound(1500 * time.Millisecond)
	cmd := commandstest.Uploading(p.Caller(), file)
	cmd.Details = audio.Details{Name: "  Opening ", Description: "in the morning"}
	made, err := p.Commands.UploadAudio.Handle(t.Context(), cmd)
	require.NoError(t, err)
	require.Equal(t, audio.Uploaded{
		AudioID: made.AudioID, Name: "Opening", Description: "in the morning", Category: "announcement", Format: "wav", ContentType: made.ContentType,
		DurationMs: 1500, Size: int64(len(file)), SHA256: cmd.SHA256, BlobKey: commands.BlobKey(cmd.Caller, made.AudioID, cmd.SHA256),
	}, made.Uploaded)
	require.Equal(t, []string{made.BlobKey}, p.BlobKeys(t))
	r, err := p.Blobs.Open(t.Context(), made.BlobKey)
	require.NoError(t, err)
	defer r.Close()
	stored, err := io.ReadAll(r)
	require.NoError(t, err)
	require.True(t, bytes.Equal(file, stored))
	require.Len(t, library(t, p), 1)
}

func TestARefusedUploadStoresNothing(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	whole := commandstest.Sound(time.Second)
	for name, file := range map[string][]byte{
		"empty":     {},
		"text":      []byte(strings.Repeat("this is no sound. ", 1000)),
		"truncated": whole[:len(whole)/2],
		"noise":     noise(10_000),
	} {
		_, err := p.Commands.UploadAudio.Handle(t.Context(), commandstest.Uploading(p.Keyed(name), file))
		require.Equal(t, "file", refused(t, err, fault.InvalidFormat).Param, name)
	}
	_, err := p.Commands.UploadAudio.Handle(t.Context(), commandstest.Uploading(p.Caller(), commandstest.Sound(10*time.Minute+time.Second)))
	require.Equal(t, "file", refused(t, err, fault.OutOfRange).Param)
	bad := commandstest.Uploading(p.Caller(), nil)
	bad.Details = audio.Details{Category: "jingle", Description: strings.Repeat("x", 1001)}
	_, err = p.Commands.UploadAudio.Handle(t.Context(), bad)
	require.Len(t, refused(t, err, fault.MissingField).Fields, 4, "all that is wrong is told at once")
	require.Empty(t, p.BlobKeys(t))
	require.Empty(t, library(t, p))
}

func noise(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func TestQuotasOfUploadsHold(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	file := commandstest.Sound(200 * time.Millisecond)
	c := p.Caller()
	c.Plan.MonthlyUploads = 1
	first := commandstest.Uploading(c, file)
	first.Caller.IdempotencyKey = "first"
	_, err := p.Commands.UploadAudio.Handle(t.Context(), first)
	require.NoError(t, err)
	again, err := p.Commands.UploadAudio.Handle(t.Context(), first)
	require.NoError(t, err, "a repeat uses nothing up")
	require.True(t, again.Replayed)
	_, err = p.Commands.UploadAudio.Handle(t.Context(), commandstest.Uploading(c, file))
	require.Equal(t, "uploads", refused(t, err, fault.QuotaExceeded).Details["quota"])
	c.Plan.MonthlyUploads = 10
	c.Plan.StorageBytes = 2*int64(len(file)) - 1
	_, err = p.Commands.UploadAudio.Handle(t.Context(), commandstest.Uploading(c, file))
	told := refused(t, err, fault.QuotaExceeded)
	require.Equal(t, "storageBytes", told.Details["quota"])
	require.Contains(t, told.Details, "resetAt")
	require.Nil(t, told.Details["resetAt"], "no month makes room")
	require.Len(t, p.BlobKeys(t), 1)
	require.NoError(t, p.Commands.DeleteAudio.Handle(t.Context(), commands.DeleteAudio{Caller: c, AudioID: again.AudioID}))
	_, err = p.Commands.UploadAudio.Handle(t.Context(), commandstest.Uploading(c, file))
	require.NoError(t, err, "what is deleted takes no room")
}

// Of several files with one key the one that won is kept, and of the others nothing.
func TestBytesThatLostAreNotKept(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	for range 10 {
		key := uuid.NewString()
		var won commands.AudioUploaded
		for i, a := range atOnce(9, func(i int) (commands.AudioUploaded, error) {
			cmd := commandstest.Uploading(p.Keyed(key), commandstest.Sound(time.Duration(100*(i%3+1))*time.Millisecond))
			cmd.Details.Name = []string{"a", "b"}[i%2]
			return p.Commands.UploadAudio.Handle(lasting(t.Context()), cmd)
		}) {
			if a.err != nil {
				refused(t, a.err, fault.Conflict)
				continue
			}
			require.EqualValues(t, 100*(i%3+1), a.result.DurationMs)
			won = a.result
		}
		require.Equal(t, []string{won.BlobKey}, p.BlobKeys(t))
		require.NoError(t, p.Commands.DeleteAudio.Handle(t.Context(), commands.DeleteAudio{Caller: p.Caller(), AudioID: won.AudioID}))
		require.Empty(t, p.BlobKeys(t))
	}
}

// A caller may leave at any moment: then there is audio with its bytes, or neither.
func TestUploadsWhoseCallersLeaveAreWholeOrNot(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	file := commandstest.Sound(200 * time.Millisecond)
	atOnce(60, func(i int) (struct{}, error) {
		ctx, leave := context.WithTimeout(lasting(t.Context()), time.Duration(i)*250*time.Microsecond)
		defer leave()
		_, err := p.Commands.UploadAudio.Handle(ctx, commandstest.Uploading(p.Caller(), file))
		return struct{}{}, err
	})
	p.Settle(t)
	keys := []string{}
	for _, item := range library(t, p) {
		keys = append(keys, item.BlobKey)
	}
	require.ElementsMatch(t, keys, p.BlobKeys(t))
}

// broken is a file whose disk fails while it is stored, after it was inspected.
type broken struct {
	io.ReaderAt
	reads *int
}

var errDisk = errors.New("the disk failed")

func (b broken) ReadAt(p []byte, off int64) (int, error) {
	if *b.reads--; *b.reads < 0 {
		return 0, errDisk
	}
	return b.ReaderAt.ReadAt(p, off)
}

func TestAPartThatIsAwayLeavesNothingHalfDone(t *testing.T) {
	t.Parallel()
	store, stop := commandstest.MortalStore(t)
	w := commandstest.New(t, store)
	p := w.Partner(t)
	p.Locations(t, "hall")
	audioID := p.Upload(t, p.Caller())
	file := commandstest.Sound(200 * time.Millisecond)

	// A file that cannot be read to its end.
	for reads := range 20 {
		cmd := commandstest.Uploading(p.Caller(), file)
		cmd.File = broken{cmd.File, &reads}
		if _, err := w.Commands.UploadAudio.Handle(t.Context(), cmd); err != nil {
			require.ErrorIs(t, err, errDisk)
			continue
		}
		break
	}
	stored := len(p.BlobKeys(t))
	require.Equal(t, stored, len(library(t, p)))

	// Blob storage is away, and comes back.
	require.NoError(t, os.Rename(w.BlobDir, w.BlobDir+".away"))
	cmd := commandstest.Uploading(p.Keyed("away"), file)
	_, err := w.Commands.UploadAudio.Handle(t.Context(), cmd)
	require.ErrorIs(t, err, blobs.ErrUnavailable)
	require.NoError(t, os.Rename(w.BlobDir+".away", w.BlobDir))
	require.Equal(t, stored, len(p.BlobKeys(t)))
	require.Equal(t, stored, len(library(t, p)))
	made, err := w.Commands.UploadAudio.Handle(t.Context(), cmd)
	require.NoError(t, err)
	require.False(t, made.Replayed, "the first request did nothing")

	// The event store is away.
	stop()
	all := keyedCommands(p, audioID)
	for i, a := range atOnce(len(all), func(i int) (any, error) {
		result, _, err := all[i].run(lasting(t.Context()), w.Commands, p.Keyed("down"), "a")
		return result, err
	}) {
		require.ErrorIs(t, a.err, eventstore.ErrUnavailable, all[i].name)
		require.False(t, visible(t, p, a.result), all[i].name)
	}
	require.Equal(t, stored+1, len(library(t, p)))
}
