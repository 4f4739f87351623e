package postgres

import (
	"context"
	"sync"
	"time"
)

// slowTrip is after how long those who came meanwhile wait no longer for the round trip that is under way: its connection may hang.
const slowTrip = 50 * time.Millisecond

// Gatherer has questions that come while others are on their way to the database share the next round trip: a quiet server asks each at once, a busy one all that
// wait. Make it with NewGatherer; it is safe for concurrent use.
type Gatherer[Q any] struct {
	most int
	trip func([]*Q)

	mu      sync.Mutex
	waiting []gathered[Q]
	working bool // a round trip is under way that is not slow
}

type gathered[Q any] struct {
	ctx      context.Context //nolint:containedctx // it is asked whether the asker is still there
	question *Q
	done     chan struct{} // closed when the answer is there
}

// NewGatherer makes a gatherer. Trip makes one round trip, bounded by itself, for at most so many questions, in the order in which they came, and writes each answer
// into its question. Several trips can be under way when one is slow.
func NewGatherer[Q any](most int, trip func([]*Q)) *Gatherer[Q] {
	return &Gatherer[Q]{most: most, trip: trip}
}

// Ask returns when the answer is in the question. The error is ctx's, and then the question must not be looked at: whoever leaves before a trip begins is left
// out of it, and a trip that began goes on without.
func (g *Gatherer[Q]) Ask(ctx context.Context, question *Q) error {
	one := gathered[Q]{ctx, question, make(chan struct{})}
	g.mu.Lock()
	g.waiting = append(g.waiting, one)
	if !g.working {
		g.working = true
		go g.work()
	}
	g.mu.Unlock()
	select {
	case <-one.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// work makes round trips until nobody waits, or until one was slow and another works in its place.
func (g *Gatherer[Q]) work() {
	for {
		g.mu.Lock()
		if len(g.waiting) == 0 {
			g.waiting, g.working = nil, false // what thousands waited in is not kept
			g.mu.Unlock()
			return
		}
		most := min(len(g.waiting), g.most)
		taken := g.waiting[:most:most]
		g.waiting = g.waiting[most:]
		g.mu.Unlock()
		slow := time.AfterFunc(slowTrip, g.work)
		g.answer(taken)
		if !slow.Stop() {
			return
		}
	}
}

func (g *Gatherer[Q]) answer(taken []gathered[Q]) {
	questions := make([]*Q, 0, len(taken))
	for _, one := range taken {
		if one.ctx.Err() == nil {
			questions = append(questions, one.question)
		}
	}
	if len(questions) > 0 {
		g.trip(questions)
	}
	for _, one := range taken {
		close(one.done)
	}
}
