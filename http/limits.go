package httpapi

import (
	"net/http"
	"time"

	"github.com/musique/musique/projections/tokens"
)

// perWindow is one figure for each of a token's limits.
type perWindow[T any] struct {
	PerMinute      T `json:"perMinute"`
	PerHour        T `json:"perHour"`
	PerDay         T `json:"perDay"`
	UploadsPerHour T `json:"uploadsPerHour"`
}

type limitsData struct {
	Plan      string               `json:"plan"`
	Limits    limitFigures         `json:"limits"`
	Usage     perWindow[int64]     `json:"usage"`
	Remaining perWindow[int64]     `json:"remaining"`
	ResetAt   perWindow[timestamp] `json:"resetAt"`
	Quota     quotaData            `json:"quota"`
}

type limitFigures struct {
	perWindow[int64]
	UploadBytes int64 `json:"uploadBytes"`
}

type quotaData struct {
	Period       string    `json:"period"` // the calendar month, UTC
	ResetAt      timestamp `json:"resetAt"`
	Sends        allowance `json:"sends"`
	Uploads      allowance `json:"uploads"`
	StorageBytes allowance `json:"storageBytes"`
}

// allowance is what a plan gives and what is left of it.
type allowance struct {
	Limit     int64 `json:"limit"`
	Used      int64 `json:"used"`
	Remaining int64 `json:"remaining"`
}

func allow(limit, used int64) allowance { return allowance{limit, used, max(limit-used, 0)} }

// limits tells the caller what it may use, and what of that is left. The request itself is counted.
func (s *Server) limits(c *call) error {
	now, plan := s.now(), s.plan(c.caller.Plan)
	uploads, err := tokens.Uploads(c.ctx(), s.pool, c.caller.TokenID, plan.UploadsPerHour, now)
	if err != nil {
		return err
	}
	used, err := s.reads.Quota(c.ctx(), c.caller.CompanyID, c.caller.Environment, now)
	if err != nil {
		return err
	}
	minute, hour, day := c.windows[0], c.windows[1], c.windows[2]
	month := time.Date(now.UTC().Year(), now.UTC().Month(), 1, 0, 0, 0, 0, time.UTC)
	return c.data(http.StatusOK, limitsData{
		Plan:      c.caller.Plan,
		Limits:    limitFigures{perWindow[int64]{minute.Limit, hour.Limit, day.Limit, uploads.Limit}, plan.UploadBytes},
		Usage:     perWindow[int64]{minute.Used, hour.Used, day.Used, uploads.Used},
		Remaining: perWindow[int64]{minute.Remaining(), hour.Remaining(), day.Remaining(), uploads.Remaining()},
		ResetAt:   perWindow[timestamp]{timestamp(minute.Reset), timestamp(hour.Reset), timestamp(day.Reset), timestamp(uploads.Reset)},
		Quota: quotaData{
			Period: month.Format("2006-01"), ResetAt: timestamp(month.AddDate(0, 1, 0)),
			Sends: allow(plan.MonthlySends, used.Sends), Uploads: allow(plan.MonthlyUploads, used.Uploads), StorageBytes: allow(plan.StorageBytes, used.StorageBytes),
		},
	})
}
