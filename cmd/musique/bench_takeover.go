package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/musique/musique/infra/blobs"
	"github.com/musique/musique/workers/cloudevents"
)

const (
	// takeoverRoles are all but the API's.
	takeoverRoles = "projections,publisher,delivery,scheduler,webhooks"
	// takeoverKills is how often a process is killed, and quietSends how many sends come before each.
	takeoverKills, quietSends = 4, 5
	// takeoverPatience bounds the wait for what a send brings about.
	takeoverPatience = 2 * time.Minute
)

// takeovers measures how long the API's partners wait for what the process did that died.
func (b *bench) takeovers(ctx context.Context) (figures []benchFigure, err error) {
	config := benchParts(b.dir)
	config.roles, config.secretKey = []string{"api"}, strings.Repeat("c3", 32)
	folder, err := blobs.FolderURL(config.dataDir + "-blobs")
	if err != nil {
		return nil, err
	}
	config.blobs = folder
	var pair [2]*child
	begin := func(p *parts) (*child, error) {
		return startChild(ctx, config.dataDir+"-other", takeoverRoles, "--eventstore", p.eventStoreURL, "--kafka", strings.Join(p.brokers, ","),
			"--database", p.pool.Config().ConnString(), "--blobs", folder, "--secret-key", config.secretKey)
	}
	defer func() {
		for _, c := range pair {
			if c != nil {
				err = errors.Join(err, c.kill())
			}
		}
	}()
	s, err := openBenchSystemWith(ctx, config, func(p *parts) (err error) {
		for i := range pair {
			if pair[i], err = begin(p); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.furnish(ctx); err != nil {
		return nil, err
	}
	topics, err := listenToTopics(ctx, s.parts.brokers)
	if err != nil {
		return nil, err
	}
	defer topics.close()

	var quiet, killed effects
	for kill := range takeoverKills {
		for range quietSends {
			if err := s.oneEffect(ctx, topics, time.Now(), &quiet); err != nil {
				return nil, err
			}
		}
		// The one that was not killed last is active in all that has one at work.
		victim := pair[kill%2]
		pair[kill%2] = nil
		at := time.Now()
		if err := victim.kill(); err != nil {
			return nil, err
		}
		if err := s.oneEffect(ctx, topics, at, &killed); err != nil {
			return nil, err
		}
		if pair[kill%2], err = begin(s.parts); err != nil {
			return nil, err
		}
	}
	baselineIs := fmt.Sprintf("the median of %d without a kill", takeoverKills*quietSends)
	figure := func(what string, killed, quiet []time.Duration) benchFigure {
		return newFigure(fmt.Sprintf("kill -9 of who is active, to a send %s, worst of %d", what, takeoverKills), "ms", percentile(killed, 100), percentile(quiet, 50), baselineIs)
	}
	return []benchFigure{
		figure("shown (projections)", killed.shown, quiet.shown),
		figure("at its player (dispatch, delivery)", killed.played, quiet.played),
		figure("on its topic (publisher)", killed.published, quiet.published),
	}, nil
}

// effects are how long what a send brings about took.
type effects struct{ shown, played, published []time.Duration }

// oneEffect sends once, and waits for all that it brings about.
func (s *benchSystem) oneEffect(ctx context.Context, topics *topicListener, since time.Time, into *effects) error {
	ctx, cancel := context.WithTimeout(ctx, takeoverPatience)
	defer cancel()
	body := fmt.Sprintf(`{"externalIds": [%q]}`, benchLocation(int(s.begun.Add(1))%benchLocations))
	resp, err := s.call(ctx, http.MethodPost, s.sendPath, "X-API-Key", s.token, body)
	if err != nil {
		return err
	}
	var accepted struct{ Data struct{ SendID string } }
	err = errors.Join(json.NewDecoder(resp.Body).Decode(&accepted), resp.Body.Close())
	if err != nil || resp.StatusCode != http.StatusAccepted {
		return errors.Join(fmt.Errorf("a send was answered with %s", resp.Status), err)
	}
	sendID := accepted.Data.SendID
	if err := s.shown(ctx, sendID); err != nil {
		return err
	}
	into.shown = append(into.shown, time.Since(since))
	s.sent.note(sendID, func(p *passage) { p.begun, p.accepted = since, time.Now() })
	arrived, err := s.sent.all(ctx)
	if err != nil {
		return err
	}
	published, err := topics.await(ctx, sendID)
	if err != nil {
		return err
	}
	into.played = append(into.played, arrived[0].sinceBegun())
	into.published = append(into.published, published.Sub(since))
	return nil
}

// shown waits until partners see a send.
func (s *benchSystem) shown(ctx context.Context, sendID string) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		resp, err := s.call(ctx, http.MethodGet, "/api/v1/integration/sends/"+sendID, "X-API-Key", s.token, "")
		if err != nil {
			return err
		}
		if err := resp.Body.Close(); err != nil || resp.StatusCode == http.StatusOK {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// topicListener notes when what is public of sends came on its topics.
type topicListener struct {
	client *kgo.Client
	cancel context.CancelFunc
	over   chan struct{}

	mu      sync.Mutex
	came    map[string]time.Time // sends
	changed chan struct{}
}

func listenToTopics(ctx context.Context, brokers []string) (*topicListener, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(cloudevents.Topics...), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	l := &topicListener{client: client, cancel: cancel, over: make(chan struct{}), came: map[string]time.Time{}, changed: make(chan struct{})}
	go func() {
		defer close(l.over)
		for ctx.Err() == nil {
			fetched := client.PollFetches(ctx)
			l.mu.Lock()
			now := time.Now()
			fetched.EachRecord(func(r *kgo.Record) {
				var about struct{ SendID string }
				if json.Unmarshal(r.Value, &about) == nil && about.SendID != "" {
					if _, known := l.came[about.SendID]; !known {
						l.came[about.SendID] = now
					}
				}
			})
			close(l.changed)
			l.changed = make(chan struct{})
			l.mu.Unlock()
		}
	}()
	return l, nil
}

// await waits until a send came, and tells when.
func (l *topicListener) await(ctx context.Context, sendID string) (time.Time, error) {
	for {
		l.mu.Lock()
		at, there := l.came[sendID]
		changed := l.changed
		l.mu.Unlock()
		if there {
			return at, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("a send is not on its topic: %w", ctx.Err())
		}
	}
}

func (l *topicListener) close() {
	l.cancel()
	<-l.over
	l.client.Close()
}
