package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/infra/blobs"
	"github.com/musique/musique/infra/esnode"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/kafka"
	"github.com/musique/musique/infra/keys"
	"github.com/musique/musique/infra/postgres"
	"github.com/musique/musique/projections"
	"github.com/musique/musique/workers"
)

// migratePause is the pause before a database that is away is tried again.
const migratePause = time.Second

// parts are the outside things that the program works with, embedded or not: from here on nobody can tell.
type parts struct {
	keys          *keys.Ring
	store         *eventstore.Store
	eventStoreURL string
	brokers       []string
	pool          *pgxpool.Pool
	blobs         *blobs.Store
	node          *esnode.Node // nil where the event store is not embedded
	backingUp     sync.Mutex
	// allEmbedded says that nothing was there before this program.
	allEmbedded bool

	failed  <-chan struct{} // closed once the embedded event store cannot go on; nil where it is not embedded
	closers []func() error  // in the order of opening
}

// openParts starts what is embedded, all at the same time, and connects to the rest.
func openParts(ctx context.Context, config serveConfig, log *slog.Logger) (_ *parts, err error) {
	p := &parts{
		eventStoreURL: config.eventStore, brokers: strings.Split(config.kafka, ","),
		allEmbedded: config.eventStore == embedded && config.kafka == embedded && config.database == embedded && config.blobs == "",
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	if p.keys, err = keys.Open(config.dataDir, config.secretKey); err != nil {
		if config.secretKey != "" {
			return nil, fmt.Errorf("--secret-key: %w", err)
		}
		return nil, err
	}
	var node *esnode.Node
	var broker *kafka.Embedded
	var database *postgres.Embedded
	databaseURL := config.database
	starting, startCtx := errgroup.WithContext(ctx)
	if config.eventStore == embedded {
		starting.Go(func() (err error) {
			node, err = esnode.Start(esnode.Options{Dir: filepath.Join(config.dataDir, "events"), Listen: config.eventStoreListen, Log: log})
			return explain(err, "--eventstore-listen")
		})
	}
	if config.kafka == embedded {
		starting.Go(func() (err error) {
			broker, err = kafka.StartEmbedded(kafka.EmbeddedOptions{Dir: filepath.Join(config.dataDir, "kafka"), Listen: config.kafkaListen, Log: log})
			return explain(err, "--kafka-listen")
		})
	}
	if config.database == embedded {
		starting.Go(func() (err error) {
			database, err = postgres.StartEmbedded(startCtx, postgres.EmbeddedOptions{Dir: filepath.Join(config.dataDir, "postgres"), Log: log})
			return err
		})
	}
	err = starting.Wait()
	// What did start is closed whether the rest did or not.
	if p.node = node; node != nil {
		p.eventStoreURL, p.failed = node.ConnectionString(), node.Failed()
		p.closers = append(p.closers, node.Close)
	}
	if broker != nil {
		p.brokers = broker.Brokers()
		p.closers = append(p.closers, broker.Close)
	}
	if database != nil {
		databaseURL = database.URL()
		p.closers = append(p.closers, func() error {
			ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
			defer cancel()
			return database.Stop(ctx)
		})
	}
	if err != nil {
		return nil, err
	}

	if p.store, err = eventstore.Open(p.eventStoreURL, log); err != nil {
		return nil, fmt.Errorf("--eventstore: %w", err)
	}
	p.closers = append(p.closers, p.store.Close)
	if p.pool, err = postgres.Connect(ctx, databaseURL); err != nil {
		return nil, fmt.Errorf("--database: %w", err)
	}
	p.closers = append(p.closers, func() error {
		return within(stopTimeout, "the connections to the database", func() error { p.pool.Close(); return nil })
	})
	address := config.blobs
	if address == "" {
		if address, err = blobs.FolderURL(filepath.Join(config.dataDir, "blobs")); err != nil {
			return nil, err
		}
	}
	if p.blobs, err = blobs.Open(ctx, address); err != nil {
		return nil, fmt.Errorf("--blobs: %w", err)
	}
	p.closers = append(p.closers, p.blobs.Close)
	return p, p.prepare(ctx, log)
}

// prepare makes the tables and topics. A database or broker that is away is waited for.
func (p *parts) prepare(ctx context.Context, log *slog.Logger) error {
	preparing, ctx := errgroup.WithContext(ctx)
	preparing.Go(func() error {
		return patiently(ctx, log, "database", postgres.IsUnavailable, func() error {
			return errors.Join(projections.Migrate(ctx, p.pool), workers.Migrate(ctx, p.pool))
		})
	})
	preparing.Go(func() error {
		away := func(err error) bool { return errors.Is(err, kafka.ErrUnavailable) }
		return patiently(ctx, log, "Kafka", away, func() error {
			return kafka.EnsureTopics(ctx, p.brokers, kafka.Topic{Name: workers.DispatchTopic, Partitions: workers.DispatchPartitions})
		})
	})
	return preparing.Wait()
}

// patiently repeats what fails because a part is away.
func patiently(ctx context.Context, log *slog.Logger, part string, away func(error) bool, do func() error) error {
	for {
		err := do()
		if err == nil || !away(err) || ctx.Err() != nil {
			return err
		}
		log.Warn("a part is away; trying until it is there", "part", part, "error", err)
		select {
		case <-time.After(migratePause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// watch ends with an error when a part cannot go on in this process, and otherwise with ctx.
func (p *parts) watch(ctx context.Context) error {
	select {
	case <-p.failed:
		return errors.New("the disk of the event store failed: where it refused a write, everything that was acknowledged is there when the server is started again; files that are damaged need a backup (docs/operations.md)")
	case <-ctx.Done():
		return nil
	}
}

// close closes everything, the last opened first.
func (p *parts) close() error {
	var err error
	for i := len(p.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, p.closers[i]())
	}
	return err
}

// explain names the setting of an address that cannot be listened on, or of a folder that another process has locked.
func explain(err error, setting string) error {
	if errors.Is(err, syscall.EAGAIN) {
		return fmt.Errorf("%w: another server uses this --data-dir; stop it or choose another data folder", err)
	}
	if _, listening := errors.AsType[*net.OpError](err); !listening {
		return err
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%s: %w; is another server running? Choose another address", setting, err)
	}
	return fmt.Errorf("%s: %w", setting, err)
}
