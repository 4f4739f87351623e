package httpapi

// TellPresence tells now what the server tells every few seconds.
func TellPresence(s *Server) { s.beatAll() }
