package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/projections"
)

const (
	// historyEvents is how many events the long history has by default, eventsPerSend how many of them one send makes that was played.
	historyEvents, eventsPerSend = 1_000_000, 4
	// historyPatience bounds each wait for read models to have all of it.
	historyPatience = time.Hour
)

// appendSends appends sends to one location, each to a stream of its own, and their deliveries' events if they are wanted.
func appendSends(ctx context.Context, client *esdb.Client, sends int, played bool) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(benchCallers)
	for range sends {
		group.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			sent := aSend()
			var said send.AudioSent
			if err := json.Unmarshal(sent.Data, &said); err != nil {
				return err
			}
			options := esdb.AppendToStreamOptions{ExpectedRevision: esdb.NoStream{}}
			if _, err := client.AppendToStream(ctx, "send-"+said.SendID, options, sent); err != nil || !played {
				return err
			}
			ref := delivery.Ref{DeliveryID: said.DeliveryID, SendID: said.SendID, AudioID: said.AudioID, ExternalID: said.ExternalID, UserID: said.UserID}
			now := time.Now().UTC()
			var ending []esdb.EventData
			for _, p := range []event.Payload{delivery.Delivered{Ref: ref, At: now}, delivery.PlaybackStarted{Ref: ref, At: now}, delivery.Played{Ref: ref, At: now}} {
				data, err := json.Marshal(p)
				if err != nil {
					return err
				}
				ending = append(ending, esdb.EventData{EventID: uuid.New(), EventType: p.EventType(), ContentType: esdb.ContentTypeJson, Data: data, Metadata: sent.Metadata})
			}
			_, err := client.AppendToStream(ctx, "delivery-"+said.DeliveryID, options, ending...)
			return err
		})
	}
	return group.Wait()
}

// history measures what a long history costs: a server on it beside one on none, both with the API and the projections.
func (b *bench) history(ctx context.Context) ([]benchFigure, error) {
	long, none := filepath.Join(b.dir, "history"), filepath.Join(b.dir, "no-history")
	reading, err := b.writeHistory(ctx, long)
	if err != nil {
		return nil, err
	}
	first, err := startChild(ctx, long, "api,projections")
	if err != nil {
		return nil, err
	}
	began := time.Now()
	caught, err := first.awaitProjections(ctx, func(all []projections.Status) bool {
		for _, s := range all {
			if s.State != projections.StateLive || s.Lag > 0 {
				return false
			}
		}
		return len(all) > 0
	})
	if err != nil {
		return nil, errors.Join(err, first.kill())
	}
	catchUp := tally{b.historyEvents, time.Since(began)}
	began = time.Now()
	if err := first.rebuild(ctx, projections.Sends); err != nil {
		return nil, errors.Join(err, first.kill())
	}
	rebuilt := tally{int(caught[projections.Sends].Events), time.Since(began)}
	held := first.residentBytes()
	if err := first.stop(); err != nil {
		return nil, err
	}
	starts := func(dir string, after func(*child) error) (ready time.Duration, held int64, err error) {
		c, err := startChild(ctx, dir, "api,projections")
		if err != nil {
			return 0, 0, err
		}
		return c.readyAfter, c.residentBytes(), after(c)
	}
	orderly, idle, err := starts(long, (*child).kill)
	if err != nil {
		return nil, err
	}
	killed, _, err := starts(long, (*child).stop)
	if err != nil {
		return nil, err
	}
	if _, _, err = starts(none, (*child).stop); err != nil { // the first start makes what the others find
		return nil, err
	}
	bare, bareHeld, err := starts(none, (*child).stop)
	if err != nil {
		return nil, err
	}
	figures := []benchFigure{
		newFigure(b.ofHistory("caught up with by all projections at once"), "/s", catchUp.perSecond(), reading.perSecond(), "$all read by the official client, and nothing done"),
		newFigure(b.ofHistory("the sends built anew beside the serving ones"), "/s", rebuilt.perSecond(), reading.perSecond(), "$all read by the official client, and nothing done"),
		newFigure(b.ofHistory("a start on it after a stop, until ready"), "ms", orderly.Seconds()*1000, bare.Seconds()*1000, "a start without a history"),
		newFigure(b.ofHistory("a start on it after kill -9, until ready"), "ms", killed.Seconds()*1000, bare.Seconds()*1000, "a start without a history"),
	}
	if bareHeld > 0 {
		figures = append(figures,
			newFigure(b.ofHistory("resident once started"), "MB", mib(idle), mib(bareHeld), "without a history"),
			newFigure(b.ofHistory("resident after catching up and building anew"), "MB", mib(held), mib(bareHeld), "without a history"))
	}
	for _, part := range []string{"events", "postgres"} {
		size, err := folderBytes(filepath.Join(long, part))
		if err != nil {
			return nil, err
		}
		empty, err := folderBytes(filepath.Join(none, part))
		if err != nil {
			return nil, err
		}
		figures = append(figures, newFigure(b.ofHistory("disk of "+part), "MB", mib(size), mib(empty), "without a history"))
	}
	return figures, nil
}

func (b *bench) ofHistory(what string) string {
	return fmt.Sprintf("history of %d events, %s", b.historyEvents, what)
}

// writeHistory makes the events, and measures how fast they are read.
func (b *bench) writeHistory(ctx context.Context, dir string) (reading tally, err error) {
	node, err := startBareNodeIn(filepath.Join(dir, "events"))
	if err != nil {
		return tally{}, err
	}
	defer func() { err = errors.Join(err, node.close()) }()
	if err := appendSends(ctx, node.client, b.historyEvents/eventsPerSend, true); err != nil {
		return tally{}, err
	}
	return readAll(ctx, node.client)
}

// folderBytes is what the files of a folder hold.
func folderBytes(dir string) (total int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it was there a moment ago
		}
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			total += info.Size()
		}
		return err
	})
	return total, err
}
