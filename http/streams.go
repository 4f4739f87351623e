package httpapi

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/musique/musique/projections/locations"
	"github.com/musique/musique/projections/tokens"
)

const (
	// revocationCheck is how often it is looked whether the device tokens of the open streams are still accepted; a revocation or rotation that this
	// process carries out is looked for at once.
	revocationCheck = time.Second
	// presenceTimeout bounds one word to the database on who is there.
	presenceTimeout = 5 * time.Second
)

// streams are the player streams that are open in this process.
type streams struct {
	mu      sync.Mutex
	open    map[string]map[*stream]struct{} // by the hash of the device token
	changed chan struct{}                   // tokens may be accepted no more

	// telling is held while it is told which streams are open, and shared by those that tell that they closed.
	telling sync.RWMutex
}

// stream is one of them.
type stream struct {
	id      string
	device  tokens.Device
	revoked chan struct{}
}

func (s *stream) presence() locations.Stream {
	return locations.Stream{ID: s.id, CompanyID: s.device.CompanyID, Environment: s.device.Environment, UserID: s.device.UserID}
}

func newStreams() *streams {
	return &streams{open: map[string]map[*stream]struct{}{}, changed: make(chan struct{}, 1)}
}

func (s *streams) add(device tokens.Device) *stream {
	added := &stream{id: uuid.NewString(), device: device, revoked: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[device.Hash] == nil {
		s.open[device.Hash] = map[*stream]struct{}{}
	}
	s.open[device.Hash][added] = struct{}{}
	return added
}

func (s *streams) remove(gone *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open[gone.device.Hash], gone)
	if len(s.open[gone.device.Hash]) == 0 {
		delete(s.open, gone.device.Hash)
	}
}

// signIns lists the hashes of the device tokens that the open streams were opened with.
func (s *streams) signIns() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.open))
}

// close ends the streams of the device tokens that are not active, of those that were asked about.
func (s *streams) close(asked []string, active map[string]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, hash := range asked {
		if active[hash] {
			continue
		}
		for gone := range s.open[hash] {
			close(gone.revoked)
		}
		delete(s.open, hash)
	}
}

// look asks for a look at the open streams' device tokens now.
func (s *streams) look() {
	select {
	case s.changed <- struct{}{}:
	default: // one is asked for already
	}
}

// present lists the open streams.
func (s *streams) present() []locations.Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []locations.Stream
	for _, open := range s.open {
		for one := range open {
			all = append(all, one.presence())
		}
	}
	return all
}

// watchStreams closes the streams whose device token is not accepted any more, and keeps telling who is online, until the server drains.
func (s *Server) watchStreams() {
	check, beat := time.NewTicker(revocationCheck), time.NewTicker(locations.BeatEvery)
	defer check.Stop()
	defer beat.Stop()
	for {
		select {
		case <-check.C:
			s.closeRevoked()
		case <-s.streams.changed:
			s.closeRevoked()
		case <-beat.C:
			s.beatAll()
		case <-s.drained:
			return
		}
	}
}

func (s *Server) closeRevoked() {
	asked := s.streams.signIns()
	if len(asked) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), presenceTimeout)
	defer cancel()
	active, err := tokens.ActiveSignIns(ctx, s.pool, asked)
	if err != nil {
		s.log.Warn("it cannot be looked whether players may still be signed in", "error", err)
		return
	}
	s.streams.close(asked, active)
}

// beat tells that streams are open. A beat that fails is only logged: the next one comes soon.
func (s *Server) beat(open ...locations.Stream) {
	ctx, cancel := context.WithTimeout(context.Background(), presenceTimeout)
	defer cancel()
	if err := locations.Beat(ctx, s.pool, open, s.now()); err != nil {
		s.log.Warn("presence cannot be told", "error", err)
	}
}

// beatAll tells of all open streams. None of them closes before that is told, or it would be told open when it is not.
func (s *Server) beatAll() {
	s.streams.telling.Lock()
	defer s.streams.telling.Unlock()
	s.beat(s.streams.present()...)
}

// leave tells that a stream was closed, after its request is over.
func (s *Server) leave(gone *stream) {
	s.streams.remove(gone)
	s.streams.telling.RLock()
	defer s.streams.telling.RUnlock()
	ctx, cancel := context.WithTimeout(context.Background(), presenceTimeout)
	defer cancel()
	if err := locations.Leave(ctx, s.pool, gone.presence(), s.now()); err != nil {
		s.log.Warn("presence cannot be told; it ends by itself", "error", err)
	}
}
