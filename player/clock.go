package player

import (
	"net/http"
	"sync"
	"time"
)

// clockTolerance is how far the machine's clock may be from the server's and still be used.
const clockTolerance = 5 * time.Second

// serverClock tells the server's time. A Raspberry Pi has no clock of its own that runs while it is off, and a shop's network may let no time service
// through: then the times of an order mean nothing by the machine's clock. From the last contact on it goes by the monotonic clock, so that setting the
// machine's clock changes nothing.
type serverClock struct {
	mu      sync.Mutex
	told    time.Time // the time at the last contact
	contact time.Time // the same moment by the machine's clock; zero before the first contact
}

// heard takes the time from an answer of the server (RFC 9110 §6.6.1).
func (c *serverClock) heard(h http.Header) {
	now := time.Now()
	told, err := http.ParseTime(h.Get("Date"))
	if err != nil || told.Sub(now).Abs() <= clockTolerance {
		told = now
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.told, c.contact = told, now
}

// now is the time, and sure says that the server has confirmed it.
func (c *serverClock) now() (now time.Time, sure bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.contact.IsZero() {
		return time.Now().Round(0), false
	}
	return c.told.Add(time.Since(c.contact)).Round(0), true
}
