// Package audio is the aggregate of one piece of audio in a company's library. Stream: `audio-{audioId}`.
package audio

// Uploaded says that audio was inspected, stored and added to the library.
type Uploaded struct {
	AudioID     string `json:"audioId"`
	Name        string `json:"name"`
	Description string `json:"description"`
	Category    string `json:"category"`
	// Format is `mp3`, `wav`, `ogg` or `aac`.
	Format string `json:"format"`
	// ContentType is the media type that the bytes are served with.
	ContentType string `json:"contentType"`
	// DurationMs is the decoded length in milliseconds.
	DurationMs int64 `json:"durationMs"`
	// Size is in bytes.
	Size int64 `json:"size"`
	// SHA256 is the lower-case hex digest of the bytes.
	SHA256 string `json:"sha256"`
	// BlobKey is where the bytes lie in blob storage.
	BlobKey string `json:"blobKey"`
}

// Deleted says that the audio left the library; its bytes go too.
type Deleted struct {
	AudioID string `json:"audioId"`
	BlobKey string `json:"blobKey"`
}

// DeletionStarted says that a deletion began: sends are refused while it is found out whether any is pending.
type DeletionStarted struct {
	AudioID string `json:"audioId"`
}

// DeletionAbandoned says that a deletion ended without one, because sends are pending.
type DeletionAbandoned struct {
	AudioID string `json:"audioId"`
}

// EventType implements event.Payload.
func (DeletionStarted) EventType() string { return "AudioDeletionStarted" }

// EventType implements event.Payload.
func (DeletionAbandoned) EventType() string { return "AudioDeletionAbandoned" }

// EventType implements event.Payload.
func (Uploaded) EventType() string { return "AudioUploaded" }

// EventType implements event.Payload.
func (Deleted) EventType() string { return "AudioDeleted" }
