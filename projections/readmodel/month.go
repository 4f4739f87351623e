package readmodel

import "time"

// Month is the first day of a time's calendar month, UTC: the period that quotas count in.
func Month(t time.Time) time.Time {
	t = t.UTC()
	return time.Date(t.Year(), t.Month(), 1, 0, 0, 0, 0, time.UTC)
}
