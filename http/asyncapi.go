package httpapi

// asyncapi serves the AsyncAPI document of the topics for analytics. It is written where the events are (workers/cloudevents), and lies in docs/events.
func (s *Server) asyncapi(c *call) error { return s.reference.events.serve(c) }
