package main

import (
	"github.com/spf13/cobra"
)

// eventStoreSettings are what a command needs to read the event store itself.
var eventStoreSettings = []setting{
	{"eventstore", "MUSIQUE_EVENTSTORE_URL", "esdb://127.0.0.1:2113?tls=false", "the esdb:// connection string of the event store; 'embedded' is that of a server on this machine, at --eventstore-listen"},
	{"eventstore-listen", "MUSIQUE_EVENTSTORE_LISTEN", "127.0.0.1:2113", "where a server on this machine has its embedded event store"},
}

func newEvents() *cobra.Command {
	cmd := &cobra.Command{Use: "events", Short: "Read the event store, which is where everything that happened is recorded"}
	return choose(cmd, eventsVerify(), eventsProve())
}
