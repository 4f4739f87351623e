// Package kafka is what the project needs around Kafka: a publisher and a subscriber for Watermill, the making of topics, and a broker of our
// own (StartEmbedded) for machines that run no Kafka. Delivery is at least once, in order among the messages of one key.
//
// Neither NewPublisher nor NewSubscriber waits for a broker: one that is away shows as an error of Publish and as messages that do not come, and
// both go on by themselves when it is back.
package kafka

import (
	"errors"
	"time"

	"github.com/IBM/sarama"
)

// KeyMetadata is the metadata entry of a message that holds its Kafka key. Messages of one key go to one partition and keep their order;
// a message without it goes to any partition.
const KeyMetadata = "kafka_key"

// MaxMessageBytes bounds one message, its key and headers included: just below what a Kafka broker takes unless told otherwise (1,048,588).
const MaxMessageBytes = 1_000_000

// Limits of what a client waits for.
const (
	dialTimeout    = 3 * time.Second
	requestTimeout = 15 * time.Second // longer than a broker may hold back its answer to a consumer that joins a group (rebalanceTimeout)
	produceTimeout = 4 * time.Second  // the broker's own wait for its replicas
)

// ErrUnavailable is what calls answer when no broker could be reached or none answered in time.
var ErrUnavailable = errors.New("kafka is unavailable")

// protocolVersion is the Kafka whose protocol the clients speak; later brokers, 4.0 included, understand it too. From 2.4 on, this client
// cannot read what the embedded broker answers to a consumer that joins its group.
var protocolVersion = sarama.V2_3_0_0

// clientID is what brokers know us by.
const clientID = "musique"

// clientConfig is the subscriber's.
func clientConfig() *sarama.Config {
	config := sarama.NewConfig()
	config.ClientID = clientID
	config.Version = protocolVersion
	config.Net.DialTimeout = dialTimeout
	config.Net.ReadTimeout = requestTimeout
	config.Net.WriteTimeout = requestTimeout
	config.Metadata.AllowAutoTopicCreation = false
	config.Metadata.Full = false // only the topics in use
	config.Metadata.Retry.Max = 3
	config.Metadata.Retry.Backoff = 100 * time.Millisecond
	return config
}
