// Package commands holds what partners, players, operators and workers can do: one file per command, each a struct that says what is wanted and a
// handler that loads a stream, lets the aggregate decide and appends what it decided.
//
// Every error that a caller can do something about is a *fault.Error; all others are failures of a part.
package commands

import (
	"context"
	"log/slog"
	"time"

	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/blobs"
	"github.com/musique/musique/infra/endpoint"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/keys"
)

// The projections that commands wait for, so that a caller reads its own write.
const (
	Tokens    = "tokens"
	Locations = "locations"
	Library   = "audio"
	Sends     = "sends"
)

// Caller is who wants something.
type Caller struct {
	CompanyID   string
	Environment event.Environment
	// Actor is the ID of the token, device, operator or worker; never a secret.
	Actor     string
	RequestID string
	// TraceParent is the place of the request in its trace; empty if it is in none.
	TraceParent string
	// IdempotencyKey is the request's, or empty.
	IdempotencyKey string
	// Plan is what the company may use.
	Plan company.Plan
}

// Reads is what commands ask the read models. Answers may lag behind the store; WaitFor bounds by how much.
type Reads interface {
	// WaitFor returns when the projections have passed the position. An error means that they did not in time.
	WaitFor(ctx context.Context, position event.Position, projections ...string) error
	// CompanyByTokenHash finds whose company token one of the hashes is.
	CompanyByTokenHash(ctx context.Context, hashes []string) (companyID string, found bool, err error)
	// TokenByHash finds a company's API token.
	TokenByHash(ctx context.Context, companyID string, hashes []string) (tokenID string, found bool, err error)
	// Destinations finds the locations that a send goes to, in the order of their external IDs, and the external IDs that are none.
	Destinations(ctx context.Context, companyID string, env event.Environment, targets send.Targets) (found []send.Location, unknown []string, err error)
	// PendingSends lists the sends of a piece of audio that were recorded before a position and are not finished.
	PendingSends(ctx context.Context, companyID string, env event.Environment, audioID string, before event.Position) (sendIDs []string, err error)
	// SendEnded reports whether every delivery of a send has ended.
	SendEnded(ctx context.Context, sendID string) (bool, error)
	// Delivery finds a delivery.
	Delivery(ctx context.Context, companyID string, env event.Environment, deliveryID string) (known KnownDelivery, found bool, err error)
	// Quota tells what a company used in the calendar month (UTC) of a time.
	Quota(ctx context.Context, companyID string, env event.Environment, month time.Time) (Used, error)
	// Reserve holds room in a company's quotas for what is being made, if there is. Used is what is used of them, with what is held for others.
	Reserve(ctx context.Context, r Reservation) (used Used, reserved bool, err error)
	// Release gives back the room that was held for what was not made, or that is counted as used by now.
	Release(ctx context.Context, id string, made bool) error
	// DestinationsAndQuota is both in one round trip, which is what a send needs.
	DestinationsAndQuota(ctx context.Context, companyID string, env event.Environment, targets send.Targets, month time.Time) (found []send.Location, unknown []string, used Used, err error)
}

// KnownDelivery is what a delivery is about, and what is known of it.
type KnownDelivery struct {
	delivery.Ref
	// SentAt is when it was sent to the player; zero if it was not yet.
	SentAt time.Time
	// CancelledAt is nil if it is not cancelled.
	CancelledAt *time.Time
	// TraceParent is its place in the trace of its send; empty if there is none.
	TraceParent string
}

// Used is what counts towards a plan's monthly quotas.
type Used struct {
	Sends, Uploads, StorageBytes int64
}

// Reservation is room in a company's quotas for what is being made.
type Reservation struct {
	// ID is that of what is being made.
	ID          string
	CompanyID   string
	Environment event.Environment
	// More is what it will use, Limits what the plan gives.
	More, Limits Used
	At           time.Time
}

// Deps are the parts that the handlers work with.
type Deps struct {
	Store *eventstore.Store
	Blobs *blobs.Store
	Keys  *keys.Ring
	Reads Reads
	Plans company.Plans
	// Endpoints says what the endpoints of locations may be.
	Endpoints endpoint.Policy
	// Now tells the time; it is time.Now but in tests.
	Now func() time.Time
	Log *slog.Logger
}

// Handlers are all commands.
type Handlers struct {
	RegisterCompany    RegisterCompanyHandler
	RotateCompanyToken RotateCompanyTokenHandler
	ChangePlan         ChangePlanHandler
	SuspendCompany     SuspendCompanyHandler
	IssueToken         IssueTokenHandler
	TestToken          TestTokenHandler
	RevokeToken        RevokeTokenHandler
	RegisterLocation   RegisterLocationHandler
	ChangeLocation     ChangeLocationHandler
	RemoveLocation     RemoveLocationHandler
	ImportLocations    ImportLocationsHandler
	EnrolDevice        EnrolDeviceHandler
	RevokeDevice       RevokeDeviceHandler
	RotateDeviceToken  RotateDeviceTokenHandler
	UploadAudio        UploadAudioHandler
	DeleteAudio        DeleteAudioHandler
	SendAudio          SendAudioHandler
	StartScheduledSend StartScheduledSendHandler
	AbandonBroadcast   AbandonBroadcastHandler
	ChangeSend         ChangeSendHandler
	CancelSend         CancelSendHandler
	CancelDelivery     CancelDeliveryHandler
	ExpireDelivery     ExpireDeliveryHandler
	ReportPlayback     ReportPlaybackHandler
	RecordUsage        RecordUsageHandler
}

// New makes the handlers.
func New(d Deps) *Handlers {
	t := &tools{d}
	return &Handlers{
		RegisterCompany:    RegisterCompanyHandler{t},
		RotateCompanyToken: RotateCompanyTokenHandler{t},
		ChangePlan:         ChangePlanHandler{t},
		SuspendCompany:     SuspendCompanyHandler{t},
		IssueToken:         IssueTokenHandler{t},
		TestToken:          TestTokenHandler{t},
		RevokeToken:        RevokeTokenHandler{t},
		RegisterLocation:   RegisterLocationHandler{t},
		ChangeLocation:     ChangeLocationHandler{t},
		RemoveLocation:     RemoveLocationHandler{t},
		ImportLocations:    ImportLocationsHandler{t},
		EnrolDevice:        EnrolDeviceHandler{t},
		RevokeDevice:       RevokeDeviceHandler{t},
		RotateDeviceToken:  RotateDeviceTokenHandler{t},
		UploadAudio:        UploadAudioHandler{t},
		DeleteAudio:        DeleteAudioHandler{t},
		SendAudio:          SendAudioHandler{t},
		StartScheduledSend: StartScheduledSendHandler{t},
		AbandonBroadcast:   AbandonBroadcastHandler{t},
		ChangeSend:         ChangeSendHandler{t},
		CancelSend:         CancelSendHandler{t},
		CancelDelivery:     CancelDeliveryHandler{t},
		ExpireDelivery:     ExpireDeliveryHandler{t},
		ReportPlayback:     ReportPlaybackHandler{t},
		RecordUsage:        RecordUsageHandler{t, &limitedStreams{}},
	}
}
