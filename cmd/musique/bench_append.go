package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"
	"github.com/google/uuid"

	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/esnode"
)

// appends measures the embedded event store against the disk.
func (b *bench) appends(ctx context.Context) (figures []benchFigure, err error) {
	node, err := startBareNode(b.dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, node.close()) }()
	file, err := openGroupFile(filepath.Join(b.dir, "bare"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.close()) }()

	for _, of := range []struct {
		writers    int
		bare       func(context.Context) error
		baselineIs string
	}{
		{1, file.append, "a file, one fsync for each append"},
		{benchCallers, file.appendInGroup, "a file, one fsync for each group of waiting writers"},
	} {
		baseline, product, err := b.byTurns(
			func(d time.Duration) (tally, error) { return many(ctx, of.writers, d, of.bare) },
			func(d time.Duration) (tally, error) { return many(ctx, of.writers, d, node.append) })
		if err != nil {
			return nil, err
		}
		figures = append(figures, newFigure(fmt.Sprintf("append, writers: %d", of.writers), "/s", product, baseline, of.baselineIs))
	}
	return figures, nil
}

// aSend is the event of a send to one location, as the product writes it.
func aSend() esdb.EventData {
	id := "snd_" + uuid.NewString()[:22]
	data, err := json.Marshal(send.AudioSent{
		SendID: id, DeliveryID: delivery.ID(id, 1<<50), Destination: send.Destination{ExternalID: "store_0001", UserID: 1 << 50}, Total: 1,
		Terms:     send.Terms{AudioID: "aud_0123456789012345678901", Priority: "normal", Repeat: 1, Volume: 100, ExpiresIn: 86400, Single: true},
		ExpiresAt: time.Now().UTC(),
	})
	metadata, err2 := json.Marshal(event.Metadata{
		CompanyID: "co_0123456789012345678901", Environment: event.Live, Actor: "tok_0123456789012345678901",
		RequestID: "req_0123456789abcdef0123456789abcdef", CorrelationID: "req_0123456789abcdef0123456789abcdef", CausationID: "req_0123456789abcdef0123456789abcdef",
		Time: time.Now().UTC(),
	})
	if err := errors.Join(err, err2); err != nil {
		panic(err) // both are structs of strings, numbers and times
	}
	return esdb.EventData{EventID: uuid.New(), EventType: send.AudioSent{}.EventType(), ContentType: esdb.ContentTypeJson, Data: data, Metadata: metadata}
}

// bareNode is the embedded event store with nothing above it but the official client.
type bareNode struct {
	node   *esnode.Node
	client *esdb.Client
}

func startBareNode(dir string) (*bareNode, error) {
	return startBareNodeIn(filepath.Join(dir, "bare-events-"+uuid.NewString()))
}

func startBareNodeIn(dir string) (*bareNode, error) {
	node, err := esnode.Start(esnode.Options{Dir: dir, Listen: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	client, err := bareClient(node.ConnectionString())
	if err != nil {
		return nil, errors.Join(err, node.Close())
	}
	return &bareNode{node, client}, nil
}

// bareClient is the official client, as it is.
func bareClient(connectionString string) (*esdb.Client, error) {
	config, err := esdb.ParseConnectionString(connectionString)
	if err != nil {
		return nil, err
	}
	config.Logger = esdb.NoopLogging()
	return esdb.NewClient(config)
}

// append adds the event of a send to a stream of its own.
func (n *bareNode) append(ctx context.Context) error {
	_, err := n.client.AppendToStream(ctx, "send-"+uuid.NewString(), esdb.AppendToStreamOptions{ExpectedRevision: esdb.NoStream{}}, aSend())
	return err
}

func (n *bareNode) close() error { return errors.Join(n.client.Close(), n.node.Close()) }

// groupFile is the least that a durable log can do: it writes the bytes of all who wait and syncs once for them.
type groupFile struct {
	file   *os.File
	record []byte
	queue  chan chan error
	ended  chan struct{}
}

func openGroupFile(path string) (*groupFile, error) {
	file, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	e := aSend()
	g := &groupFile{file: file, record: append(e.Data, e.Metadata...), queue: make(chan chan error, benchCallers), ended: make(chan struct{})}
	go g.run()
	return g, nil
}

func (g *groupFile) run() {
	defer close(g.ended)
	for first := range g.queue {
		waiting := []chan error{first}
		for len(g.queue) > 0 {
			waiting = append(waiting, <-g.queue)
		}
		err := g.write(len(waiting))
		for _, w := range waiting {
			w <- err
		}
	}
}

func (g *groupFile) write(records int) error {
	if _, err := g.file.Write(bytes.Repeat(g.record, records)); err != nil {
		return err
	}
	return g.file.Sync()
}

func (g *groupFile) append(context.Context) error { return g.write(1) }

func (g *groupFile) appendInGroup(context.Context) error {
	done := make(chan error, 1)
	g.queue <- done
	return <-done
}

func (g *groupFile) close() error {
	close(g.queue)
	<-g.ended
	return g.file.Close()
}
