package player_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// step is something that happens to a shop; it tells what it did.
type step struct {
	kind  string
	order order
	which int
	wait  time.Duration
}

var steps = rapid.Custom(func(r *rapid.T) step {
	return step{
		kind: rapid.SampledFrom([]string{"deliver", "deliver", "deliver", "again", "cancel", "cut", "down", "up", "restart", "pass", "pass"}).Draw(r, "kind"),
		order: order{
			priority: rapid.SampledFrom([]string{"low", "normal", "high", "urgent"}).Draw(r, "priority"),
			length:   time.Duration(rapid.IntRange(0, 5000).Draw(r, "length")) * time.Millisecond,
			repeat:   rapid.IntRange(1, 3).Draw(r, "repeat"),
		},
		which: rapid.IntRange(0, 100).Draw(r, "which"),
		wait:  time.Duration(rapid.IntRange(0, 8000).Draw(r, "wait")) * time.Millisecond,
	}
})

// Whatever happens to the network and to the player, in the end everything that was not cancelled was played as often as it should, and reported in order.
func TestEverythingIsPlayedOnce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		happens := rapid.SliceOfN(steps, 1, 25).Draw(r, "steps")
		var wrong string
		synctest.Test(t, func(t *testing.T) { wrong = play(t, happens) })
		if wrong != "" {
			r.Fatal(wrong)
		}
	})
}

// play lets everything happen, then time pass, and says what is wrong then.
func play(t *testing.T, happens []step) string {
	s := newStation(t)
	p := opened(t, s)
	var orders []order
	cancelled := map[string]bool{}
	for _, step := range happens {
		switch step.kind {
		case "deliver":
			step.order.id = fmt.Sprintf("dlv_%d", len(orders)+1)
			step.order.audio = step.order.id
			orders = append(orders, step.order)
			s.deliver(step.order)
		case "again":
			if len(orders) > 0 {
				s.deliver(orders[step.which%len(orders)])
			}
		case "cancel":
			if len(orders) > 0 {
				id := orders[step.which%len(orders)].id
				cancelled[id] = true
				s.cancel(id)
			}
		case "cut":
			s.cut()
		case "down":
			s.setDown(true)
		case "up":
			s.setDown(false)
		case "restart":
			p.end()
			p.start()
		}
		pass(step.wait)
	}
	s.setDown(false)
	pass(time.Hour)
	p.end()

	if p.stage.overlaps {
		return "two sounds at the same time"
	}
	whole := map[string]int{}
	for _, played := range p.stage.performances() {
		if played.Whole {
			whole[played.Audio]++
		}
	}
	for _, o := range orders {
		var told []string
		for _, line := range s.told() {
			if status, its := strings.CutPrefix(line, o.id+" "); its {
				told = append(told, status)
			}
		}
		in := fmt.Sprintf("%s (%s, %d times): played %d times, reported %v, cancelled: %v", o.id, o.priority, o.repeat, whole[o.id], told, cancelled[o.id])
		if all := []string{"delivered", "playing", "played"}; !cancelled[o.id] && (whole[o.id] != o.repeat || !slices.Equal(told, all)) ||
			len(told) > len(all) || !slices.Equal(told, all[:len(told)]) || whole[o.id] > o.repeat {
			return in
		}
	}
	return ""
}
