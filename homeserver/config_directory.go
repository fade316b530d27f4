package homeserver

// People is about accounts that come from elsewhere.
type People struct {
	DeactivateAfter Duration `yaml:"deactivate_after"`
}
