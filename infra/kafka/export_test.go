package kafka

// ApplyRetention does now what the broker does every minute.
func (e *Embedded) ApplyRetention() { e.applyRetention() }
