package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"github.com/musique/musique/infra/esnode"
	"github.com/musique/musique/infra/kafka"
	"github.com/musique/musique/infra/postgres"
)

// asPart makes the test binary one of the parts that a server depends on, in a process of its own: its name, its folder and its port.
const asPart = "MUSIQUE_TEST_AS_PART"

// runPart runs the part until its standard input ends, or it cannot go on.
func runPart(what string) error {
	fields := strings.Fields(what)
	name, dir, port := fields[0], fields[1], fields[2]
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	over := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(over)
	}()
	switch name {
	case "eventstore":
		node, err := esnode.Start(esnode.Options{Dir: dir, Listen: "127.0.0.1:" + port, Log: log})
		if err != nil {
			return err
		}
		fmt.Println(node.ConnectionString())
		select {
		case <-node.Failed(): // as the program does
			return errors.New("the disk failed")
		case <-over:
			return node.Close()
		}
	case "kafka":
		broker, err := kafka.StartEmbedded(kafka.EmbeddedOptions{Dir: dir, Listen: "127.0.0.1:" + port, Log: log})
		if err != nil {
			return err
		}
		fmt.Println(strings.Join(broker.Brokers(), ","))
		<-over
		return broker.Close()
	case "postgres":
		number, err := strconv.Atoi(port)
		if err != nil {
			return err
		}
		database, err := postgres.StartEmbedded(context.Background(), postgres.EmbeddedOptions{Dir: dir, Port: number, Log: log})
		if err != nil {
			return err
		}
		fmt.Println(database.URL())
		<-over
		return database.Stop(context.Background())
	}
	return fmt.Errorf("no part %q", name)
}
