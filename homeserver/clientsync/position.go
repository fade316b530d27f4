package clientsync

// ParsePosition gives the log position of a sync token, for endpoints that take one. Errors: M_INVALID_PARAM.
func ParsePosition(s string) (int64, error) {
	t, err := parseToken(s)
	return t.pos, err
}
