package endpoint_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/endpoint"
)

func TestPublicAddresses(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"1.1.1.1", "8.8.8.8", "93.184.215.14", "198.17.255.255", "198.20.0.0", "172.15.255.255", "172.32.0.1", "100.63.255.255", "100.128.0.0", "2606:4700::1111", "2a00:1450:4001::1"} {
		require.True(t, endpoint.Public(netip.MustParseAddr(address)), address)
	}
	for _, address := range []string{
		"0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.254", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.127.255.255",
		"192.0.0.1", "192.0.2.1", "198.51.100.7", "203.0.113.9", "198.18.0.1", "198.19.255.255", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
		"::", "::1", "fe80::1", "fc00::1", "fd12:3456::1", "ff02::1", "2001:db8::1", "3fff::1", "2001:2::1", "2001::1", "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b::8.8.8.8", "64:ff9b:1::1",
		"::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "100::1", "fec0::1",
	} {
		require.False(t, endpoint.Public(netip.MustParseAddr(address)), address)
	}
	require.False(t, endpoint.Public(netip.Addr{}))
}

// What net calls private, loopback and so on is never public, however it is written in IPv6.
func TestNothingPrivateIsPublic(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		raw := [4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "address"))
		addr := netip.AddrFrom4(raw)
		inside := !addr.IsGlobalUnicast() || addr.IsPrivate()
		if inside {
			require.False(t, endpoint.Public(addr), addr)
		}
		mapped := netip.AddrFrom16(addr.As16())
		require.False(t, endpoint.Public(mapped), mapped)
		nat64 := [16]byte{0, 0x64, 0xff, 0x9b, 12: raw[0], raw[1], raw[2], raw[3]}
		require.False(t, endpoint.Public(netip.AddrFrom16(nat64)))
		sixToFour := [16]byte{0x20, 0x02, raw[0], raw[1], raw[2], raw[3]}
		require.False(t, endpoint.Public(netip.AddrFrom16(sixToFour)))
	})
}

func TestWhatAnEndpointMayBe(t *testing.T) {
	t.Parallel()
	strict, lax := endpoint.Policy{}, endpoint.Policy{AllowPrivate: true}
	for text, fine := range map[string]bool{
		"https://radio.example/in": true, "HTTPS://radio.example:8443": true, "https://1.1.1.1/": true, "https://[2606:4700::1111]/": true,
		"http://radio.example/in": false, "https://127.0.0.1/": false, "https://10.1.2.3:444/": false, "https://[::1]/": false, "https://[::ffff:10.0.0.1]/": false,
		"https://[fe80::1]/": false, "https://localhost/": false, "https://LOCALHOST./": false, "https://a.localhost/": false, "https://169.254.169.254/latest/meta-data": false,
	} {
		u, err := url.Parse(text)
		require.NoError(t, err)
		require.Equal(t, fine, strict.Check(u) == "", text)
		require.Empty(t, lax.Check(u), text)
	}
	for text, fine := range map[string]bool{
		"https://radio.example:8443/in?a=b@c": true, "https://192.0.2.7:8443/in": true, "https://radio.example:65535/": true, "https://radio.example./": true, "https://3.example/": true,
		"https://user:p%40ss@radio.example/in": false, "https://user@radio.example/": false, "https://radio.example:0/in": false, "https://radio.example:99999/in": false,
		"https://2130706433/in": false, "https://127.0x1/in": false, "https://0x7f000001/": false, "https://0177.0.0.1/": false, "https://127.1/": false, "https://0/": false,
	} {
		u, err := url.Parse(text)
		require.NoError(t, err)
		require.Equal(t, fine, lax.Check(u) == "", text)
	}
}

func TestAClientReachesNoPrivateAddress(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		http.Redirect(w, r, "/again", http.StatusTemporaryRedirect)
	}))
	t.Cleanup(server.Close)
	port := server.URL[strings.LastIndex(server.URL, ":"):]
	for _, host := range []string{"127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433"} { // names are looked up, and what they stand for is seen
		response, err := get(t, endpoint.Policy{}, "http://"+host+port)
		if err == nil {
			_ = response.Body.Close()
		}
		require.Error(t, err, host)
		if host != "2130706433" && host != "[::1]" { // which some machines do not know
			require.True(t, endpoint.Refused(err), "%s: %v", host, err)
		}
	}
	require.Zero(t, asked.Load())
	response, err := get(t, endpoint.Policy{AllowPrivate: true}, server.URL)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, http.StatusTemporaryRedirect, response.StatusCode)
	require.EqualValues(t, 1, asked.Load(), "a redirect is not followed, and no proxy is asked")
}

// A name that stood for a public address when it was looked at stands for a private one when it is connected to.
func TestANameThatIsRebound(t *testing.T) {
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	t.Cleanup(server.Close)
	names := nameServer(t, func(lookUp int64) netip.Addr {
		if lookUp == 1 {
			return netip.MustParseAddr("93.184.215.14")
		}
		return netip.MustParseAddr("127.0.0.1")
	})
	before := net.DefaultResolver
	net.DefaultResolver = names
	t.Cleanup(func() { net.DefaultResolver = before })
	first, err := names.LookupNetIP(t.Context(), "ip4", "rebound.example.")
	require.NoError(t, err)
	require.True(t, endpoint.Public(first[0].Unmap()))
	_, err = get(t, endpoint.Policy{}, "http://rebound.example."+server.URL[strings.LastIndex(server.URL, ":"):])
	require.True(t, endpoint.Refused(err), "%v", err)
	require.Zero(t, asked.Load())
}

// nameServer answers each look-up of an IPv4 address as it is told to (RFC 1035 §4).
func nameServer(t *testing.T, answer func(lookUp int64) netip.Addr) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		var lookUps int64
		buffer := make([]byte, 512)
		for {
			n, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			end := 12
			for buffer[end] != 0 {
				end += int(buffer[end]) + 1
			}
			question := buffer[12 : end+5]
			reply := append([]byte{buffer[0], buffer[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, question...)
			if kind := question[len(question)-3]; kind == 1 && n > end {
				lookUps++
				reply[7] = 1
				address := answer(lookUps).As4()
				reply = append(append(reply, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4), address[:]...)
			}
			_, _ = conn.WriteTo(reply, from)
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

func get(t *testing.T, p endpoint.Policy, url string) (*http.Response, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	return p.Client().Do(request)
}

// The example of the specification: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md.
func TestASignatureOfTheSpecification(t *testing.T) {
	t.Parallel()
	h := http.Header{}
	endpoint.Sign(h, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`))
	require.Equal(t, http.Header{
		"Webhook-Id": {"msg_p5jXN8AQM9LWM0D4loKWxJek"}, "Webhook-Timestamp": {"1614265330"}, "Webhook-Signature": {"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="},
	}, h)
	unsigned := http.Header{}
	endpoint.Sign(unsigned, "", "id", time.Unix(1, 0), nil)
	require.Empty(t, unsigned.Get("Webhook-Signature"))
}

func TestKeys(t *testing.T) {
	t.Parallel()
	of := func(n int) string { return "whsec_" + base64.StdEncoding.EncodeToString(make([]byte, n)) }
	require.Len(t, endpoint.Key(of(24)), 24)
	require.Len(t, endpoint.Key(of(64)), 64)
	for _, secret := range []string{of(23), of(65), "whsec_", "whsec_?", "a secret of one's own"} {
		require.Equal(t, secret, string(endpoint.Key(secret)))
		require.Equal(t, !strings.HasPrefix(secret, "whsec_"), endpoint.CheckSecret(secret) == "", secret)
	}
	for _, secret := range []string{"", of(24), of(64), endpoint.NewSecret(), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"} {
		require.Empty(t, endpoint.CheckSecret(secret))
	}
	require.Len(t, endpoint.Key(endpoint.NewSecret()), 32)
	require.NotEqual(t, endpoint.NewSecret(), endpoint.NewSecret())
}

func FuzzKey(f *testing.F) {
	f.Add("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	f.Add("whsec_")
	f.Fuzz(func(t *testing.T, secret string) {
		key := endpoint.Key(secret)
		if string(key) != secret {
			require.Equal(t, "whsec_"+base64.StdEncoding.EncodeToString(key), strings.NewReplacer("\n", "", "\r", "").Replace(secret))
			require.True(t, len(key) >= 24 && len(key) <= 64)
		}
		h := http.Header{}
		endpoint.Sign(h, secret, "id", time.Unix(17, 0), []byte("body"))
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte("id.17.body"))
		require.Equal(t, secret != "", h.Get("Webhook-Signature") == "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	})
}

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func reports(bytes ...byte) endpoint.Reports {
	var keys [][]byte
	for _, b := range bytes {
		keys = append(keys, []byte(strings.Repeat(string(rune(b)), 32)))
	}
	return endpoint.NewReports(keys)
}

func TestAReportURLNamesOneDelivery(t *testing.T) {
	t.Parallel()
	what := endpoint.Report{CompanyID: "co_1", Environment: event.Live, DeliveryID: "dlv_x_7"}
	path := reports('a').Path(what, noon.Add(time.Millisecond))
	parse := func(text string) *url.URL {
		u, err := url.Parse(text)
		require.NoError(t, err)
		return u
	}
	for _, s := range []endpoint.Reports{reports('a'), reports('b', 'a')} {
		got, err := s.Verify(parse(path), noon)
		require.NoError(t, err)
		require.Equal(t, what, got)
	}
	wrong := map[string]string{
		"another delivery":  strings.Replace(path, "dlv_x_7", "dlv_x_8", 1),
		"another company":   strings.Replace(path, "co_1", "co_2", 1),
		"the sandbox":       strings.Replace(path, "live", "test", 1),
		"a later end":       strings.Replace(path, "expires=", "expires=9", 1),
		"written otherwise": strings.Replace(path, "dlv_x_7", "dlv%5Fx_7", 1),
		"more":              path + "&a=b",
		"no signature":      path[:strings.Index(path, "&")],
		"another path":      strings.Replace(path, "/report/", "/media/", 1),
	}
	for name, text := range wrong {
		_, err := reports('a').Verify(parse(text), noon)
		require.ErrorIs(t, err, endpoint.ErrReportURL, name)
	}
	_, err := reports('b').Verify(parse(path), noon)
	require.ErrorIs(t, err, endpoint.ErrReportURL, "another key")
	_, err = reports('a').Verify(parse(path), noon.Add(time.Second))
	require.ErrorIs(t, err, endpoint.ErrReportURL, "past its time")
}

func FuzzReportURL(f *testing.F) {
	s := reports('a')
	f.Add(s.Path(endpoint.Report{CompanyID: "co_1", Environment: event.Live, DeliveryID: "dlv_x_7"}, noon.Add(time.Hour)))
	f.Add("/report/a/b/c?expires=" + strconv.Itoa(1<<40) + "&signature=")
	f.Fuzz(func(t *testing.T, text string) {
		u, err := url.Parse(text)
		if err != nil {
			return
		}
		if r, err := s.Verify(u, noon); err == nil {
			require.Equal(t, endpoint.Report{CompanyID: "co_1", Environment: event.Live, DeliveryID: "dlv_x_7"}, r, "nobody makes another one without the key")
		}
	})
}
