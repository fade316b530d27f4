package web

import (
	"net/http"
	"strings"
)

// The values are shared by all responses: setting them allocates nothing.
var (
	corsOrigin  = []string{"*"}
	corsMethods = []string{"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"}
	corsHeaders = []string{"X-Requested-With, Content-Type, Authorization, Date"}
	corsExpose  = []string{"Retry-After, X-Request-Id, Content-Disposition, ETag"}
	corsMaxAge  = []string{"86400"}
)

// hasCORS tells whether pages of other origins may read the path.
// Spec: client-server API, "Web browser clients". Of OAuth 2.0 those are the endpoints that clients call by themselves: people
// are sent to the authorization endpoint, which must not be read by others (RFC 9700, section 2.6). Administration tools are pages
// of other origins too; what they may do comes with the access token that they hold.
func hasCORS(path string) bool {
	return strings.HasPrefix(path, "/_matrix/") || strings.HasPrefix(path, "/.well-known/") || strings.HasPrefix(path, "/_synapse/") ||
		strings.HasPrefix(path, "/oauth2/") && path != "/oauth2/authorize"
}

func setCORS(h http.Header) {
	h["Access-Control-Allow-Origin"] = corsOrigin
	h["Access-Control-Allow-Methods"] = corsMethods
	h["Access-Control-Allow-Headers"] = corsHeaders
	h["Access-Control-Expose-Headers"] = corsExpose
	h["Access-Control-Max-Age"] = corsMaxAge
}
