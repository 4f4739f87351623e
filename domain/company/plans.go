package company

import (
	"slices"
)

// The plans that there always are.
const (
	Standard  = "standard"
	Plus      = "plus"
	Unlimited = "unlimited"
)

// Plan is what a company may use. Rates count per token, quotas per company and environment in a calendar month (UTC).
type Plan struct {
	PerMinute      int   `json:"perMinute" yaml:"perMinute"`
	PerHour        int   `json:"perHour" yaml:"perHour"`
	PerDay         int   `json:"perDay" yaml:"perDay"`
	UploadsPerHour int   `json:"uploadsPerHour" yaml:"uploadsPerHour"`
	UploadBytes    int64 `json:"uploadBytes" yaml:"uploadBytes"`
	MonthlySends   int64 `json:"monthlySends" yaml:"monthlySends"`
	MonthlyUploads int64 `json:"monthlyUploads" yaml:"monthlyUploads"`
	StorageBytes   int64 `json:"storageBytes" yaml:"storageBytes"`
}

// Plans are the plans by name.
type Plans map[string]Plan

const mebibyte = 1 << 20

// DefaultPlans are the plans as they are sold; an operator's configuration may change or add some.
func DefaultPlans() Plans {
	const never = 1_000_000_000 // a figure too high to bind
	return Plans{
		Standard: {PerMinute: 100, PerHour: 1_000, PerDay: 10_000, UploadsPerHour: 60, UploadBytes: 10 * mebibyte,
			MonthlySends: 100_000, MonthlyUploads: 1_000, StorageBytes: 1 << 30},
		Plus: {PerMinute: 600, PerHour: 10_000, PerDay: 100_000, UploadsPerHour: 600, UploadBytes: 10 * mebibyte,
			MonthlySends: 1_000_000, MonthlyUploads: 10_000, StorageBytes: 10 << 30},
		Unlimited: {PerMinute: never, PerHour: never, PerDay: never, UploadsPerHour: never, UploadBytes: 10 * mebibyte,
			MonthlySends: never, MonthlyUploads: never, StorageBytes: 1 << 50},
	}
}

// Names lists the plans in alphabetical order.
func (p Plans) Names() []string {
	names := make([]string, 0, len(p))
	for name := range p {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
