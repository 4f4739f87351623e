package httpapi

import (
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
)

// spanName names a request as OpenTelemetry's conventions for HTTP have it: the method and the route, in which variables are names.
func (c *call) spanName() string {
	if path := c.endpoint(); path != "" {
		return c.spanMethod() + " " + path
	}
	return c.spanMethod()
}

// spanMethod is the request's, if it is one that is known here: any word can be one.
func (c *call) spanMethod() string {
	switch c.r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPatch, http.MethodPut, http.MethodDelete, http.MethodOptions:
		return c.r.Method
	}
	return "_OTHER"
}

// givenTrace says that the request's traceparent comes from here: players and endpoints report with that of the delivery.
func (c *call) givenTrace() bool {
	return c.route != nil && (c.route.access == byDevice || c.route.paths[0] == reportPath)
}

// endSpan ends the request's span. Nothing that the caller wrote is in it, but for the IDs of what it asked about.
func (c *call) endSpan() {
	defer c.span.End()
	if !c.span.IsRecording() {
		return
	}
	c.span.SetAttributes(attribute.String("musique.operation", c.operation()), attribute.String("http.request.method", c.spanMethod()), attribute.Int("http.response.status_code", c.w.status))
	for key, value := range map[string]string{
		"http.route": c.endpoint(), "musique.company_id": c.companyID(), "musique.actor": c.actor(), "error.type": string(c.code),
	} {
		if value != "" {
			c.span.SetAttributes(attribute.String(key, value))
		}
	}
	if c.w.status >= http.StatusInternalServerError {
		c.span.SetStatus(codes.Error, "")
	}
}
