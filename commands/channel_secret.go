package commands

import (
	"net/url"
	"strconv"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/infra/endpoint"
	"github.com/musique/musique/infra/keys"
)

// A channel's secret is sealed in the location's events, since messages to the endpoint have to be signed with it. A request is told from another with the same
// Idempotency-Key by a fingerprint that the secret is no part of: it would be an unkeyed hash of it. So the secret itself is compared.

// sealed gives details as they are stored, with the secret that the partner gave sealed. Where it gave none the channel keeps the one that it has, or gets a
// new one: made, which the partner is to be shown.
func (t *tools) sealed(c Caller, userID int64, details location.Details, before location.Channel) (stored location.Details, made string) {
	stored = details
	stored.Channel.Secret, stored.Secret = "", ""
	if details.Channel.Type != location.ChannelHTTP {
		return stored, ""
	}
	secret := details.Secret
	if before.Type == location.ChannelHTTP && before.Secret != "" {
		now, err := ChannelSecret(t.Keys, c.CompanyID, c.Environment, userID, before.Secret)
		if secret == "" || err == nil && secret == now {
			stored.Channel.Secret = before.Secret
			return stored, ""
		}
	}
	if secret == "" {
		made = endpoint.NewSecret()
		secret = made
	}
	stored.Channel.Secret = t.Keys.Seal(channelPurpose, secret, channelContext(c.CompanyID, c.Environment, userID)...)
	return stored, made
}

// shownSecret is the secret that an earlier request made, as its event holds it, or "" if the partner had given it. That it gave another one then is an error.
func (t *tools) shownSecret(c Caller, userID int64, given, sealed string) (string, error) {
	if sealed == "" {
		return "", nil
	}
	secret, err := ChannelSecret(t.Keys, c.CompanyID, c.Environment, userID, sealed)
	switch {
	case err == nil && given == "":
		return secret, nil
	case err == nil && given != secret:
		return "", errAnotherRequest
	case err != nil && given == "":
		return "", fault.New(fault.Conflict, "The secret of this Idempotency-Key was made, and cannot be shown again, since the server's secret key has changed; change the channel's secret.")
	}
	return "", nil
}

var errAnotherRequest = fault.New(fault.Conflict, "The Idempotency-Key was used with another request; use a new key.")

const channelPurpose = "channel"

func channelContext(companyID string, env event.Environment, userID int64) []string {
	return []string{companyID, string(env), strconv.FormatInt(userID, 10)}
}

// ChannelSecret opens the sealed secret of a location's channel.
func ChannelSecret(ring *keys.Ring, companyID string, env event.Environment, userID int64, sealed string) (string, error) {
	return ring.Unseal(channelPurpose, sealed, channelContext(companyID, env, userID)...)
}

// CheckDetails notes what is wrong with the details of a location, and with an endpoint that cannot be one or that the operator does not let be one.
func (t *tools) CheckDetails(details location.Details, fields *fault.Fields) {
	before := len(*fields)
	details.Check(fields)
	if details.Channel.Type != location.ChannelHTTP {
		return
	}
	wrong := map[string]string{"channel.secret": endpoint.CheckSecret(details.Secret)}
	if u, err := url.Parse(details.Channel.URL); err == nil {
		wrong["channel.url"] = t.Endpoints.Check(u)
	}
	for _, f := range (*fields)[before:] {
		delete(wrong, f.Param)
	}
	for _, param := range []string{"channel.url", "channel.secret"} {
		if wrong[param] != "" {
			fields.Add(param, fault.InvalidFormat, "%s", wrong[param])
		}
	}
}
