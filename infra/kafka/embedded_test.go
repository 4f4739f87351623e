package kafka_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/musique/musique/infra/kafka"
	"github.com/musique/musique/infra/kafka/kafkatest"
)

// These variables make the test binary a program that runs a broker on the folder and address that they name, and waits to be killed.
const (
	runBrokerOn = "MUSIQUE_TEST_RUN_BROKER_ON"
	runBrokerAt = "MUSIQUE_TEST_RUN_BROKER_AT"
)

// patience bounds the waits of these tests. Nothing takes that long unless it fails.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	if dir := os.Getenv(runBrokerOn); dir != "" {
		broker, err := kafka.StartEmbedded(kafka.EmbeddedOptions{Dir: dir, Listen: os.Getenv(runBrokerAt)})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(broker.Brokers()[0])
		select {}
	}
	os.Exit(m.Run())
}

// startProgram runs a broker in a process of its own, and returns what kills it (kill -9), and its address.
func startProgram(t *testing.T, dir, listen string) (kill func(), address string) {
	t.Helper()
	if kafkatest.Apache() {
		server := kafkatest.Start(t, dir, listen)
		return server.Kill, server.Address
	}
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), runBrokerOn+"="+dir, runBrokerAt+"="+listen)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	})
	t.Cleanup(kill)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err, "the broker did not start")
	return kill, strings.TrimSpace(line)
}

// freeAddress is one that nothing listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}

// startBroker runs a broker that ends as it does when nothing is wrong.
func startBroker(t *testing.T, dir, listen string) (stop func(), brokers []string) {
	t.Helper()
	if kafkatest.Apache() {
		server := kafkatest.Start(t, dir, listen)
		return func() { server.Stop(t) }, []string{server.Address}
	}
	broker := startEmbedded(t, dir, listen)
	return func() { require.NoError(t, broker.Close()) }, broker.Brokers()
}

func startEmbedded(t *testing.T, dir, listen string) *kafka.Embedded {
	t.Helper()
	broker, err := kafka.StartEmbedded(kafka.EmbeddedOptions{Dir: dir, Listen: listen, Log: testLog(t)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, broker.Close()) })
	return broker
}

func testLog(testing.TB) *slog.Logger { return slog.New(slog.DiscardHandler) }

func newPublisher(t testing.TB, brokers []string) *kafka.Publisher {
	t.Helper()
	publisher, err := kafka.NewPublisher(brokers, testLog(t))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, publisher.Close()) })
	return publisher
}

func subscribe(t *testing.T, brokers []string, group, topic string) <-chan *message.Message {
	t.Helper()
	subscriber, err := kafka.NewSubscriber(brokers, group, testLog(t))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, subscriber.Close()) })
	messages, err := subscriber.Subscribe(context.Background(), topic)
	require.NoError(t, err)
	return messages
}

// receive takes and acknowledges one message.
func receive(t *testing.T, messages <-chan *message.Message) string {
	t.Helper()
	select {
	case m := <-messages:
		m.Ack()
		return string(m.Payload)
	case <-time.After(patience):
		require.FailNow(t, "no message came")
		return ""
	}
}

func send(publisher *kafka.Publisher, topic, key string, payloads ...string) error {
	var messages []*message.Message
	for _, payload := range payloads {
		m := message.NewMessage(uuid.NewString(), []byte(payload))
		m.Metadata.Set(kafka.KeyMetadata, key)
		messages = append(messages, m)
	}
	return publisher.Publish(topic, messages...)
}

func admin(t *testing.T, brokers []string) *kadm.Client {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return kadm.NewClient(client)
}

func TestCloseAndStartKeepMessagesAndPlaces(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	stop, brokers := startBroker(t, dir, "")
	require.NoError(t, kafka.EnsureTopics(t.Context(), brokers, kafka.Topic{Name: "kept", Partitions: 1}))
	require.NoError(t, send(newPublisher(t, brokers), "kept", "key", "one", "two"))
	subscriber, err := kafka.NewSubscriber(brokers, "group", testLog(t))
	require.NoError(t, err)
	messages, err := subscriber.Subscribe(t.Context(), "kept")
	require.NoError(t, err)
	require.Equal(t, "one", receive(t, messages))
	require.Equal(t, "two", string((<-messages).Payload), "which shows that the acknowledgement of the one before has arrived")
	require.NoError(t, subscriber.Close())
	stop()

	_, brokers = startBroker(t, dir, "")
	require.NoError(t, send(newPublisher(t, brokers), "kept", "key", "three"))
	again := subscribe(t, brokers, "group", "kept")
	require.Equal(t, "two", receive(t, again), "the first that was not acknowledged")
	require.Equal(t, "three", receive(t, again))
}

func TestAKilledBrokerHasAllThatItAcknowledged(t *testing.T) {
	t.Parallel()
	const writers, enough = 4, 50
	rounds := 3
	if kafkatest.Apache() { // each takes ten seconds
		rounds = 1
	}
	dir := t.TempDir()
	kill, address := startProgram(t, dir, "")
	require.NoError(t, kafka.EnsureTopics(t.Context(), []string{address}, kafka.Topic{Name: "acknowledged", Partitions: 4}))

	var mu sync.Mutex
	acknowledged := map[string]bool{}
	for round := range rounds {
		killed := make(chan struct{})
		plenty := make(chan struct{})
		publisher := newPublisher(t, []string{address})
		var writing sync.WaitGroup
		count := 0
		for writer := range writers {
			writing.Go(func() {
				for n := 0; ; n++ {
					payload := fmt.Sprintf("%d/%d/%d", round, writer, n)
					if err := send(publisher, "acknowledged", fmt.Sprint(writer), payload); err == nil {
						mu.Lock()
						acknowledged[payload] = true
						if count++; count == enough {
							close(plenty)
						}
						mu.Unlock()
					}
					select {
					case <-killed:
						return
					default:
					}
				}
			})
		}
		select {
		case <-plenty: // the writers go on while it is killed
		case <-time.After(patience):
			require.FailNow(t, "nothing is acknowledged")
		}
		kill()
		close(killed)
		writing.Wait()
		kill, _ = startProgram(t, dir, address)
	}

	require.GreaterOrEqual(t, len(acknowledged), rounds*enough)
	messages := subscribe(t, []string{address}, "checker", "acknowledged")
	last := map[string]int{}
	for len(acknowledged) > 0 {
		payload := receive(t, messages)
		delete(acknowledged, payload)
		var round, writer, n int
		_, err := fmt.Sscanf(payload, "%d/%d/%d", &round, &writer, &n)
		require.NoError(t, err)
		of := fmt.Sprintf("%d/%d", round, writer)
		require.GreaterOrEqual(t, n, last[of], "the messages of one key keep their order")
		last[of] = n
	}
}

func TestClientsGoOnAfterTheBrokersRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	kill, address := startProgram(t, dir, "")
	brokers := []string{address}
	require.NoError(t, kafka.EnsureTopics(t.Context(), brokers, kafka.Topic{Name: "restart", Partitions: 2}))
	publisher := newPublisher(t, brokers)
	messages := subscribe(t, brokers, "group", "restart")
	require.NoError(t, send(publisher, "restart", "key", "before"))
	require.Equal(t, "before", receive(t, messages))

	kill()
	began := time.Now()
	require.ErrorIs(t, send(publisher, "restart", "key", "lost"), kafka.ErrUnavailable)
	t.Logf("a publish to a dead broker failed after %v", time.Since(began).Round(time.Millisecond))
	require.Less(t, time.Since(began), 10*time.Second)
	require.ErrorIs(t, kafka.Ping(t.Context(), brokers), kafka.ErrUnavailable)

	startProgram(t, dir, address)
	require.NoError(t, kafka.Ping(t.Context(), brokers))
	began = time.Now()
	require.Eventually(t, func() bool { return send(publisher, "restart", "key", "after") == nil }, patience, 50*time.Millisecond)
	for receive(t, messages) != "after" { // the place may not have been committed: then "before" comes again
	}
	t.Logf("a message went through %v after the restart", time.Since(began).Round(time.Millisecond))
}

// The broker goes away again and again amid calls of many messages, which are repeated until they succeed. A consumer sees the messages of the
// key in their order, but for those that it has seen.
func TestOrderHoldsWhateverFails(t *testing.T) {
	t.Parallel()
	const perCall, bytes = 60, 60_000 // a call is several batches
	restarts := 6
	if kafkatest.Apache() { // each takes seconds
		restarts = 2
	}
	dir := t.TempDir()
	stop, brokers := startBroker(t, dir, "")
	require.NoError(t, kafka.EnsureTopics(t.Context(), brokers, kafka.Topic{Name: "order", Partitions: 1}))
	publisher := newPublisher(t, brokers)
	var over atomic.Bool
	published := make(chan int)
	go func() {
		n, filler := 0, strings.Repeat("x", bytes)
		for ; !over.Load(); n += perCall {
			var payloads []string
			for i := range perCall {
				payloads = append(payloads, fmt.Sprintf("%d %s", n+i, filler))
			}
			for send(publisher, "order", "key", payloads...) != nil {
			}
		}
		published <- n
	}()
	random := mathrand.New(mathrand.NewPCG(1, 2))
	for range restarts {
		<-time.After(time.Duration(100+random.IntN(400)) * time.Millisecond) // anywhere in a call
		stop()
		<-time.After(time.Duration(300+random.IntN(900)) * time.Millisecond) // shorter and longer than clients retry at once
		stop, _ = startBroker(t, dir, brokers[0])
	}
	over.Store(true)
	total := <-published
	messages := subscribe(t, brokers, "group of order", "order")
	for next := 0; next < total; {
		number, _, _ := strings.Cut(receive(t, messages), " ")
		n, err := strconv.Atoi(number)
		require.NoError(t, err)
		require.LessOrEqual(t, n, next, "a message is there before the one that it follows")
		if n == next {
			next++
		}
	}
}

func TestClientsWaitForABrokerThatIsNotThereYet(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	brokers := []string{address}
	publisher := newPublisher(t, brokers)
	require.ErrorIs(t, send(publisher, "later", "key", "lost"), kafka.ErrUnavailable)
	require.ErrorIs(t, kafka.Ping(t.Context(), brokers), kafka.ErrUnavailable)
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, kafka.EnsureTopics(short, brokers, kafka.Topic{Name: "later", Partitions: 1}), kafka.ErrUnavailable)
	messages := subscribe(t, brokers, "group", "later")

	startBroker(t, t.TempDir(), address)
	require.NoError(t, kafka.EnsureTopics(t.Context(), brokers, kafka.Topic{Name: "later", Partitions: 1}))
	require.Eventually(t, func() bool { return send(publisher, "later", "key", "there") == nil }, patience, 50*time.Millisecond)
	require.Equal(t, "there", receive(t, messages))
}

func TestASubscriptionToATopicThatIsMadeLater(t *testing.T) {
	t.Parallel()
	brokers := kafkatest.Brokers(t)
	messages := subscribe(t, brokers, "group of the topic made later", "made-later")
	require.NoError(t, kafka.EnsureTopics(t.Context(), brokers, kafka.Topic{Name: "made-later", Partitions: 1}))
	require.NoError(t, send(newPublisher(t, brokers), "made-later", "key", "there"))
	require.Equal(t, "there", receive(t, messages))
}

// A consumer that dies while the broker has it wait for the others of its group leaves its share to them.
func TestAConsumerThatDiesWhileItJoinsHoldsNothing(t *testing.T) {
	t.Parallel()
	broker, err := kafka.StartEmbedded(kafka.EmbeddedOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, broker.Close()) })
	topic, group := "shared", "consumers"
	require.NoError(t, kafka.EnsureTopics(t.Context(), broker.Brokers(), kafka.Topic{Name: topic, Partitions: 8}))
	consumer := func() *kgo.Client {
		client, err := kgo.NewClient(kgo.SeedBrokers(broker.Brokers()...), kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
			kgo.SessionTimeout(time.Second), kgo.HeartbeatInterval(300*time.Millisecond), kgo.RebalanceTimeout(time.Second), kgo.DisableAutoCommit(), kgo.Balancers(kgo.RangeBalancer()))
		require.NoError(t, err)
		t.Cleanup(client.Close)
		return client
	}
	about := admin(t, broker.Brokers())
	members := func() int {
		found, err := about.DescribeGroups(t.Context(), group)
		require.NoError(t, err)
		return len(found[group].Members)
	}
	first := consumer()
	require.Eventually(t, func() bool { return members() == 1 }, patience, 10*time.Millisecond)

	// It joins, is told its name, joins by it, and is gone before the others have.
	dead, err := kgo.NewClient(kgo.SeedBrokers(broker.Brokers()...))
	require.NoError(t, err)
	join := kmsg.NewPtrJoinGroupRequest()
	join.Group, join.SessionTimeoutMillis, join.RebalanceTimeoutMillis, join.ProtocolType = group, 1000, 1000, "consumer"
	protocol := kmsg.NewJoinGroupRequestProtocol()
	protocol.Name = "range"
	subscription := kmsg.NewConsumerMemberMetadata()
	subscription.Topics = []string{topic}
	protocol.Metadata = subscription.AppendTo(nil)
	join.Protocols = append(join.Protocols, protocol)
	named, err := join.RequestWith(t.Context(), dead)
	require.NoError(t, err)
	join.MemberID = named.MemberID
	ctx, die := context.WithCancel(t.Context())
	go func() {
		_, _ = join.RequestWith(ctx, dead) // nobody is there for the answer
	}()
	require.Eventually(t, func() bool { return members() == 2 }, patience, time.Millisecond)
	die()
	dead.Close()

	require.Eventually(t, func() bool { return members() == 1 }, patience, 10*time.Millisecond)
	publisher := newPublisher(t, broker.Brokers())
	const all = 64
	for i := range all {
		require.NoError(t, send(publisher, topic, fmt.Sprint(i), "x"))
	}
	deadline, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	for got := 0; got < all; {
		fetches := first.PollFetches(deadline)
		require.NoError(t, deadline.Err(), "%d of %d came", got, all)
		got += fetches.NumRecords()
	}
}

func TestEnsureTopicsLeavesThoseThatAreThere(t *testing.T) {
	t.Parallel()
	brokers := kafkatest.Brokers(t)
	var all sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs { // as many processes do that start at once
		all.Go(func() {
			errs[i] = kafka.EnsureTopics(t.Context(), brokers, kafka.Topic{Name: "ensured", Partitions: 3})
		})
	}
	all.Wait()
	require.NoError(t, errors.Join(errs...))
	require.NoError(t, kafka.EnsureTopics(t.Context(), brokers, kafka.Topic{Name: "ensured", Partitions: 5}, kafka.Topic{Name: "ensured-too", Partitions: 1}))
	topics, err := admin(t, brokers).ListTopics(t.Context(), "ensured", "ensured-too")
	require.NoError(t, err)
	require.Len(t, topics["ensured"].Partitions, 3)
	require.Len(t, topics["ensured-too"].Partitions, 1)
	require.Error(t, kafka.EnsureTopics(t.Context(), brokers, kafka.Topic{Name: "no-partitions"}))
}

func TestAMessageThatIsTooLargeHarmsNoOther(t *testing.T) {
	t.Parallel()
	brokers := kafkatest.Brokers(t)
	require.NoError(t, kafka.EnsureTopics(t.Context(), brokers, kafka.Topic{Name: "large", Partitions: 1}))
	publisher := newPublisher(t, brokers)
	err := send(publisher, "large", "key", strings.Repeat("x", kafka.MaxMessageBytes))
	require.Error(t, err)
	require.NotErrorIs(t, err, kafka.ErrUnavailable)
	require.NoError(t, send(publisher, "large", "key", strings.Repeat("x", kafka.MaxMessageBytes-1000)))
	require.Len(t, receive(t, subscribe(t, brokers, "group of large", "large")), kafka.MaxMessageBytes-1000)
}

func TestTheDiskOfAPartitionIsBounded(t *testing.T) {
	t.Parallel()
	const bound, size, count = 1 << 20, 100 << 10, 30
	dir := t.TempDir()
	broker, err := kafka.StartEmbedded(kafka.EmbeddedOptions{Dir: dir, PartitionBytes: bound})
	require.NoError(t, err)
	require.NoError(t, kafka.EnsureTopics(t.Context(), broker.Brokers(), kafka.Topic{Name: "full", Partitions: 1}, kafka.Topic{Name: "small", Partitions: 1}))
	publisher := newPublisher(t, broker.Brokers())
	require.NoError(t, send(publisher, "small", "key", "kept"))
	for range count {
		incompressible := make([]byte, size)
		_, _ = rand.Read(incompressible) // documented never to fail
		require.NoError(t, send(publisher, "full", "key", string(incompressible)))
	}
	require.NoError(t, broker.Close())

	broker, err = kafka.StartEmbedded(kafka.EmbeddedOptions{Dir: dir, PartitionBytes: bound})
	require.NoError(t, err)
	defer broker.Close()
	broker.ApplyRetention()
	require.GreaterOrEqual(t, firstOffset(t, broker, "full"), int64(count-bound/size-1), "what is kept is bounded")
	require.Less(t, firstOffset(t, broker, "full"), int64(count), "and something is kept")
	require.Zero(t, firstOffset(t, broker, "small"))
	require.Less(t, diskUse(t, dir), int64(bound+2*bound/8+size))
}

func diskUse(t *testing.T, dir string) (bytes int64) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			bytes += info.Size()
		}
		return err
	}))
	return bytes
}

func firstOffset(t *testing.T, broker *kafka.Embedded, topic string) int64 {
	t.Helper()
	offsets, err := admin(t, broker.Brokers()).ListStartOffsets(t.Context(), topic)
	require.NoError(t, err)
	offset, found := offsets.Lookup(topic, 0)
	require.True(t, found)
	return offset.Offset
}

func TestABrokersFolderAndAddress(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	broker := startEmbedded(t, dir, "")
	_, err := kafka.StartEmbedded(kafka.EmbeddedOptions{Dir: dir})
	require.ErrorContains(t, err, "in use")
	_, err = kafka.StartEmbedded(kafka.EmbeddedOptions{Listen: broker.Brokers()[0]})
	require.ErrorContains(t, err, "address already in use")
	for _, listen := range []string{"0.0.0.0:9092", "[::]:9092", ":9092", "127.0.0.1", "127.0.0.1:port", "127.0.0.1:65536"} {
		_, err := kafka.StartEmbedded(kafka.EmbeddedOptions{Listen: listen})
		require.ErrorContains(t, err, "listen address", listen)
	}
}

// BenchmarkPublish shows what each publisher's wait for the disk costs: messages of 500 bytes to a broker on disk, one a call from 1 and 64
// goroutines, and 100 a call from one.
func BenchmarkPublish(b *testing.B) {
	for _, c := range []struct{ publishers, batch int }{{1, 1}, {64, 1}, {1, 100}} {
		b.Run(fmt.Sprintf("publishers=%d/batch=%d", c.publishers, c.batch), func(b *testing.B) {
			broker, err := kafka.StartEmbedded(kafka.EmbeddedOptions{Dir: b.TempDir()})
			require.NoError(b, err)
			b.Cleanup(func() { require.NoError(b, broker.Close()) })
			require.NoError(b, kafka.EnsureTopics(b.Context(), broker.Brokers(), kafka.Topic{Name: "bench", Partitions: 16}))
			publisher := newPublisher(b, broker.Brokers())
			payload := make([]string, c.batch)
			for i := range payload {
				payload[i] = strings.Repeat("x", 500)
			}
			require.NoError(b, send(publisher, "bench", "warm", payload...))
			var all sync.WaitGroup
			work := make(chan int)
			for range c.publishers {
				all.Go(func() {
					for n := range work {
						if err := send(publisher, "bench", fmt.Sprint(n), payload...); err != nil {
							b.Error(err)
						}
					}
				})
			}
			b.ResetTimer()
			for n := range b.N {
				work <- n
			}
			close(work)
			all.Wait()
			b.ReportMetric(float64(b.N*c.batch)/b.Elapsed().Seconds(), "messages/s")
		})
	}
}
