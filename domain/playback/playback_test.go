package playback_test

import (
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/musique/musique/domain/playback"
)

// played runs the queue empty and lists what played, in order.
func played(q *playback.Queue) []string {
	var ids []string
	for {
		item, ok := q.Current()
		if !ok {
			return ids
		}
		ids = append(ids, item.ID)
		q.Finish()
	}
}

func current(t require.TestingT, q *playback.Queue) string {
	item, ok := q.Current()
	require.True(t, ok)
	return item.ID
}

func TestPriorities(t *testing.T) {
	t.Parallel()
	var q playback.Queue
	q.Add(playback.Item{ID: "normal 1", Priority: playback.Normal})
	q.Add(playback.Item{ID: "low", Priority: playback.Low})
	q.Add(playback.Item{ID: "normal 2", Priority: playback.Normal})
	q.Add(playback.Item{ID: "high 1", Priority: playback.High})
	q.Add(playback.Item{ID: "high 2", Priority: playback.High})
	require.Equal(t, []string{"normal 1", "high 1", "high 2", "normal 2", "low"}, played(&q))
}

func TestUrgentInterruptsAndWhatItInterruptedResumes(t *testing.T) {
	t.Parallel()
	var q playback.Queue
	q.Add(playback.Item{ID: "normal", Priority: playback.Normal})
	require.Equal(t, "normal", current(t, &q))
	q.Add(playback.Item{ID: "urgent 1", Priority: playback.Urgent})
	require.Equal(t, "urgent 1", current(t, &q))
	q.Add(playback.Item{ID: "high", Priority: playback.High})
	q.Add(playback.Item{ID: "urgent 2", Priority: playback.Urgent})
	require.Equal(t, "urgent 1", current(t, &q), "urgent does not interrupt urgent")
	require.Equal(t, []string{"urgent 1", "urgent 2", "normal", "high"}, played(&q))
}

func TestRemove(t *testing.T) {
	t.Parallel()
	var q playback.Queue
	q.Add(playback.Item{ID: "a", Priority: playback.Normal})
	q.Add(playback.Item{ID: "b", Priority: playback.Normal})
	q.Add(playback.Item{ID: "c", Priority: playback.Urgent})
	require.True(t, q.Remove("a"), "what was interrupted")
	require.True(t, q.Remove("c"), "what plays")
	require.False(t, q.Remove("c"))
	require.Equal(t, []string{"b"}, played(&q))
}

// Whatever happens, each item ends once, never before one of its own priority that came earlier, and nothing of a lower kind begins while urgent waits.
func TestInvariants(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var q playback.Queue
		arrival, priority := map[string]int{}, map[string]playback.Priority{}
		finished := map[string]bool{}
		lastOf := map[playback.Priority]int{}
		present := 0
		finish := func() {
			item, ok := q.Current()
			require.Equal(t, present > 0, ok, "something plays if there is anything")
			if !ok {
				return
			}
			require.False(t, finished[item.ID])
			finished[item.ID] = true
			require.Greater(t, arrival[item.ID], lastOf[item.Priority])
			lastOf[item.Priority] = arrival[item.ID]
			present--
			q.Finish()
		}
		for i := range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0, 1:
				item := playback.Item{ID: strconv.Itoa(i), Priority: playback.Priority(rapid.IntRange(0, 3).Draw(t, "priority"))}
				arrival[item.ID], priority[item.ID] = i+1, item.Priority
				require.True(t, q.Add(item))
				require.False(t, q.Add(item), "twice")
				present++
			case 2:
				finish()
			case 3:
				id := strconv.Itoa(rapid.IntRange(0, i).Draw(t, "removed"))
				here := arrival[id] > 0 && !finished[id]
				require.Equal(t, here, q.Remove(id))
				if here {
					finished[id] = true
					present--
				}
			}
			require.Equal(t, present, q.Len())
			if item, ok := q.Current(); ok && item.Priority < playback.Urgent {
				for id, p := range priority {
					require.False(t, p == playback.Urgent && !finished[id], "%s waits though it is urgent", id)
				}
			}
		}
		for present > 0 {
			finish()
		}
	})
}
