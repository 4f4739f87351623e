package esnode

import (
	"context"
	"time"
)

// subscriber is told what a subscription sees.
type subscriber interface {
	event(*recorded) error
	checkpoint(position uint64) error
	caughtUp() error
	fellBehind() error
}

// subscribeAll gives every event after a position (excluded) that the filter selects, first those that are there, then each as it becomes
// durable, until ctx ends or to fails.
func subscribeAll(ctx context.Context, s *store, after uint64, f filter, to subscriber) error {
	live, sinceCheckpoint := false, 0
	for {
		v, changed, err := s.acquire()
		if err != nil {
			return err
		}
		page, fromMemory, err := s.page(v, after)
		if err := joinRelease(s, v, err); err != nil {
			return err
		}
		if live && !fromMemory {
			live = false
			if err := to.fellBehind(); err != nil {
				return err
			}
		}
		for _, e := range page {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			after = e.CommitPosition
			if f.matches(e) {
				if err := to.event(e); err != nil {
					return err
				}
			}
			if sinceCheckpoint++; f.checkpointEvery > 0 && sinceCheckpoint >= f.checkpointEvery {
				sinceCheckpoint = 0
				if err := to.checkpoint(after); err != nil {
					return err
				}
			}
		}
		if len(page) > 0 {
			continue
		}
		if !live {
			live = true
			if f.checkpointEvery > 0 && sinceCheckpoint > 0 {
				sinceCheckpoint = 0
				if err := to.checkpoint(after); err != nil {
					return err
				}
			}
			if err := to.caughtUp(); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-s.failed:
			return errFailed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// page gives the next events after a position, from memory where they are still there.
func (s *store) page(v *view, after uint64) (events []*recorded, fromMemory bool, err error) {
	if after >= v.head {
		return nil, true, nil
	}
	s.mu.Lock()
	events, fromMemory = s.ring.after(after, pageEvents, pageBytes)
	s.mu.Unlock()
	if fromMemory {
		return events, true, nil
	}
	all, err := readAll(v, false, after+1, v.head, pageEvents, filter{})
	return all.events, false, err
}

// subscribeStream is subscribeAll for one stream: every event after a revision (excluded; -1 is all).
func subscribeStream(ctx context.Context, s *store, stream string, after int64, now func() time.Time, to subscriber) error {
	live := false
	for {
		v, changed, err := s.acquire()
		if err != nil {
			return err
		}
		page, err := readStream(v, stream, false, after+1, latest, pageEvents, now())
		if _, absent := err.(streamNotFound); absent { //nolint:errorlint // readStream returns it bare
			page, err = streamPage{next: after + 1, done: true}, nil
		}
		if err := joinRelease(s, v, err); err != nil {
			return err
		}
		for _, e := range page.events {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err := to.event(e); err != nil {
				return err
			}
		}
		after = page.next - 1
		if !page.done || len(page.events) == pageEvents {
			continue
		}
		if !live {
			live = true
			if err := to.caughtUp(); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-s.failed:
			return errFailed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// lastRevision is where a subscription "from the end" of a stream begins.
func lastRevision(s *store, stream string) (int64, error) {
	v, _, err := s.acquire()
	if err != nil {
		return 0, err
	}
	h, err := headOf(v.snapshot, stream)
	if h.tombstoned {
		err = streamDeleted{stream}
	}
	return h.last, joinRelease(s, v, err)
}

func joinRelease(s *store, v *view, err error) error {
	if released := s.release(v); err == nil {
		return released
	}
	return err
}
