package homeserver

import "context"

// endBrowsers ends sessions on the server's own pages that an identity provider opened.
func (s *Server) endBrowsers(ctx context.Context, browsers []string) error { return nil }
