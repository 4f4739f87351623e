package httpapi

import (
	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/infra/endpoint"
)

// endpointActor is who reports at a signed URL.
const endpointActor = "endpoint"

// reportFromEndpoint takes the word of a location's endpoint of what became of a delivery. It needs no token: the signature of the URL is what lets in.
func (s *Server) reportFromEndpoint(c *call) error {
	named, err := s.reports.Verify(c.r.URL, s.now())
	if err != nil {
		return errNoReport
	}
	_, userID, ok := delivery.ParseID(named.DeliveryID)
	if !ok {
		return errNoReport
	}
	return c.report(commands.ReportPlayback{
		Caller: commands.Caller{CompanyID: named.CompanyID, Environment: named.Environment, Actor: endpointActor, RequestID: c.id, TraceParent: c.traceParent()},
		UserID: userID, DeliveryID: named.DeliveryID,
	}, "playing", "played", "failed")
}

// reportPath is where endpoints report, as the router has it.
const reportPath = endpoint.ReportPath + "{companyId}/{environment}/{deliveryId}"

// errNoReport is told for a wrong signature and for one whose time is over, so that who guesses learns nothing.
var errNoReport = fault.New(fault.NotFound, "There is nothing at this URL, or its time is over: report at the reportUrl of the delivery, until an hour after its expiry.")
