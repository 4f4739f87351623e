package eventstore_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/eventstore"
)

// A scan gives each event once, in order, from wherever it begins to wherever it is stopped, over as many pages as it takes.
func TestAScanGivesEachEventOnce(t *testing.T) {
	t.Parallel()
	node := startNode(t)
	store := node.open()
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	require.NoError(t, store.LimitAge(t.Context(), "scanned", time.Hour)) // which is an event of the store's own
	const appends, each = 11, 100
	for range appends {
		events := make([]event.Proposed, each)
		for i := range events {
			events[i] = proposed("Scanned", i)
		}
		_, err := store.Append(t.Context(), "scanned", eventstore.Any, events...)
		require.NoError(t, err)
	}
	scan := func(t require.TestingT, after event.Position, most int) (found []eventstore.Stored, through event.Position) {
		through, err := store.Scan(context.Background(), after, func(e eventstore.Stored) (bool, error) {
			if len(found) == most {
				return false, nil
			}
			found = append(found, e)
			return true, nil
		})
		require.NoError(t, err)
		return found, through
	}
	all, end := scan(t, event.Position{}, -1)
	require.Len(t, all, appends*each)
	for i, e := range all {
		require.EqualValues(t, i, e.Revision)
		require.WithinDuration(t, time.Now(), e.Created, time.Minute)
		require.NotEmpty(t, e.RawMetadata)
	}
	require.Equal(t, all[len(all)-1].Position, end)
	rapid.Check(t, func(t *rapid.T) {
		from, most := rapid.IntRange(0, len(all)-1).Draw(t, "from"), rapid.IntRange(1, len(all)).Draw(t, "most")
		found, through := scan(t, all[from].Position, most)
		want := all[from+1 : min(from+1+most, len(all))]
		require.Len(t, found, len(want))
		for i, e := range want {
			require.Equal(t, e.ID, found[i].ID)
		}
		rest, _ := scan(t, through, -1)
		require.Len(t, rest, len(all)-from-1-len(want), "it goes on where it was stopped")
	})
	refused := errors.New("refused")
	_, err := store.Scan(t.Context(), event.Position{}, func(eventstore.Stored) (bool, error) { return false, refused })
	require.ErrorIs(t, err, refused)
}

// Who follows the store gets each event once, in order, though it goes away and comes back.
func TestWhoFollowsMissesNothing(t *testing.T) {
	t.Parallel()
	node := startNode(t)
	store := node.open()
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const rounds, each = 4, 30
	seen := make(chan uint64, rounds*each)
	enough, ended := errors.New("enough"), make(chan error, 1)
	go func() {
		count := 0
		ended <- store.Follow(ctx, event.Position{}, func(e eventstore.Stored) error {
			seen <- e.Revision
			if count++; count == rounds*each {
				return enough
			}
			return nil
		})
	}()
	next := uint64(0)
	for round := range rounds {
		for i := range each {
			e := proposed("Followed", round*each+i)
			for {
				_, err := store.Append(ctx, "followed", eventstore.Any, e)
				if err == nil {
					break
				}
				require.ErrorIs(t, err, eventstore.ErrUnavailable, fmt.Sprint(round))
			}
		}
		for range each {
			select {
			case revision := <-seen:
				require.Equal(t, next, revision)
				next++
			case <-ctx.Done():
				t.Fatal("an event did not come")
			}
		}
		node.stop()
		node.start()
	}
	require.ErrorIs(t, <-ended, enough)
}
