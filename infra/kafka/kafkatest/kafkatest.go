// Package kafkatest gives tests a real Kafka broker: one embedded in the test process, or the one at MUSIQUE_KAFKA_BROKERS.
package kafkatest

import (
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/musique/musique/infra/kafka"
)

// Brokers returns the addresses of a broker that all tests of the process share, so use topics and groups of your own. It lives as long as
// the process.
func Brokers(t testing.TB) []string {
	t.Helper()
	if given := os.Getenv("MUSIQUE_KAFKA_BROKERS"); given != "" {
		return strings.Split(given, ",")
	}
	broker, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	return broker.Brokers()
}

// OwnBrokers returns the addresses of an embedded broker that nobody else uses, for a test in which topics and groups have the names that they have in production.
func OwnBrokers(t testing.TB) []string {
	t.Helper()
	broker, err := kafka.StartEmbedded(kafka.EmbeddedOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = broker.Close() })
	return broker.Brokers()
}

// shared starts the broker once, in memory.
var shared = sync.OnceValues(func() (*kafka.Embedded, error) {
	return kafka.StartEmbedded(kafka.EmbeddedOptions{})
})
