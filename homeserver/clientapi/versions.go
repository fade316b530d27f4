package clientapi

import (
	"maps"
	"net/http"

	"github.com/moothall/moothall/homeserver/web"
)

// specVersion is a version of the specification and the endpoints that it added, which a server that lists it must
// have. Endpoints for features that the specification leaves to the server (single sign-on, application services,
// policy servers) are not among them.
type specVersion struct {
	Version string
	Added   []string
}

// specVersions are the versions that GET /versions lists: only those that are here as a whole. What v1.1 kept of the
// releases before it is counted as added by it.
var specVersions = []specVersion{
	{"v1.1", []string{
		"GET /_matrix/client/v3/login", "POST /_matrix/client/v3/login", "POST /_matrix/client/v3/logout", "POST /_matrix/client/v3/logout/all",
		"POST /_matrix/client/v3/register", "GET /_matrix/client/v3/register/available", "GET /_matrix/client/v3/account/whoami",
		"POST /_matrix/client/v3/account/password", "POST /_matrix/client/v3/account/deactivate", "GET /_matrix/client/v3/account/3pid",
		"GET /_matrix/client/v3/capabilities", "GET /_matrix/client/v3/devices", "GET /_matrix/client/v3/devices/{deviceId}",
		"PUT /_matrix/client/v3/devices/{deviceId}", "DELETE /_matrix/client/v3/devices/{deviceId}", "POST /_matrix/client/v3/delete_devices",
		"GET /_matrix/client/v3/sync", "POST /_matrix/client/v3/user/{userId}/filter", "GET /_matrix/client/v3/user/{userId}/filter/{filterId}",
		"POST /_matrix/client/v3/createRoom", "POST /_matrix/client/v3/join/{roomIdOrAlias}", "POST /_matrix/client/v3/rooms/{roomId}/join",
		"POST /_matrix/client/v3/knock/{roomIdOrAlias}", "POST /_matrix/client/v3/rooms/{roomId}/leave", "POST /_matrix/client/v3/rooms/{roomId}/forget",
		"POST /_matrix/client/v3/rooms/{roomId}/invite", "POST /_matrix/client/v3/rooms/{roomId}/kick", "POST /_matrix/client/v3/rooms/{roomId}/ban",
		"POST /_matrix/client/v3/rooms/{roomId}/unban", "GET /_matrix/client/v3/joined_rooms", "PUT /_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}",
		"PUT /_matrix/client/v3/rooms/{roomId}/redact/{eventId}/{txnId}", "PUT /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}",
		"GET /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}", "GET /_matrix/client/v3/rooms/{roomId}/state",
		"GET /_matrix/client/v3/rooms/{roomId}/members", "GET /_matrix/client/v3/rooms/{roomId}/joined_members", "GET /_matrix/client/v3/rooms/{roomId}/messages",
		"GET /_matrix/client/v3/rooms/{roomId}/event/{eventId}", "GET /_matrix/client/v3/rooms/{roomId}/context/{eventId}",
		"PUT /_matrix/client/v3/rooms/{roomId}/typing/{userId}", "POST /_matrix/client/v3/rooms/{roomId}/receipt/{receiptType}/{eventId}",
		"POST /_matrix/client/v3/rooms/{roomId}/read_markers", "GET /_matrix/client/v3/rooms/{roomId}/aliases",
		"PUT /_matrix/client/v3/directory/room/{roomAlias}", "GET /_matrix/client/v3/directory/room/{roomAlias}", "DELETE /_matrix/client/v3/directory/room/{roomAlias}",
		"GET /_matrix/client/v3/directory/list/room/{roomId}", "PUT /_matrix/client/v3/directory/list/room/{roomId}",
		"GET /_matrix/client/v3/publicRooms", "POST /_matrix/client/v3/publicRooms", "POST /_matrix/client/v3/user_directory/search",
		"GET /_matrix/client/v3/profile/{userId}", "PUT /_matrix/client/v3/presence/{userId}/status", "GET /_matrix/client/v3/presence/{userId}/status",
		"PUT /_matrix/client/v3/user/{userId}/account_data/{type}", "GET /_matrix/client/v3/user/{userId}/account_data/{type}",
		"PUT /_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}", "GET /_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}",
		"GET /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags", "PUT /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}",
		"DELETE /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}",
		"GET /_matrix/client/v3/pushrules/", "GET /_matrix/client/v3/pushers", "POST /_matrix/client/v3/pushers/set", "GET /_matrix/client/v3/notifications",
		"POST /_matrix/client/v3/keys/upload", "POST /_matrix/client/v3/keys/query", "POST /_matrix/client/v3/keys/claim", "GET /_matrix/client/v3/keys/changes",
		"POST /_matrix/client/v3/keys/device_signing/upload", "POST /_matrix/client/v3/keys/signatures/upload",
		"POST /_matrix/client/v3/room_keys/version", "GET /_matrix/client/v3/room_keys/version", "PUT /_matrix/client/v3/room_keys/keys",
		"GET /_matrix/client/v3/room_keys/keys", "DELETE /_matrix/client/v3/room_keys/keys", "PUT /_matrix/client/v3/sendToDevice/{eventType}/{txnId}",
		"POST /_matrix/media/v3/upload", "GET /_matrix/client/v3/voip/turnServer", "GET /_matrix/client/v3/thirdparty/protocols",
		"GET /.well-known/matrix/client",
	}},
	{"v1.2", []string{
		"GET /_matrix/client/v1/register/m.login.registration_token/validity", // m.login.registration_token
		"GET /_matrix/client/v1/rooms/{roomId}/hierarchy",
	}},
	{"v1.3", []string{
		"POST /_matrix/client/v3/refresh",
		"GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}", // relations and their aggregation
		"GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}/{relType}",
		"GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}/{relType}/{eventType}",
	}},
	{"v1.4", []string{"GET /_matrix/client/v1/rooms/{roomId}/threads"}}, // threads, threaded and private receipts
	{"v1.5", nil}, // clarifications
	{"v1.6", []string{"GET /_matrix/client/v1/rooms/{roomId}/timestamp_to_event"}},
	{"v1.7", []string{ // m.mentions; get_token answers 404 where it is switched off, which GET /login tells
		"POST /_matrix/client/v1/login/get_token", "POST /_matrix/media/v1/create", "PUT /_matrix/media/v3/upload/{serverName}/{mediaId}",
	}},
	{"v1.8", nil},  // room version 11
	{"v1.9", nil},  // clarifications
	{"v1.10", nil}, // /.well-known/matrix/support, where it is configured
	{"v1.11", []string{
		"GET /_matrix/client/v1/media/download/{serverName}/{mediaId}", "GET /_matrix/client/v1/media/download/{serverName}/{mediaId}/{fileName}",
		"GET /_matrix/client/v1/media/thumbnail/{serverName}/{mediaId}", "GET /_matrix/client/v1/media/config",
	}},
	{"v1.12", nil}, // M_USER_LOCKED
	{"v1.13", []string{"POST /_matrix/client/v3/rooms/{roomId}/report"}}, // M_USER_SUSPENDED
	{"v1.14", []string{"POST /_matrix/client/v3/users/{userId}/report"}},
	{"v1.15", []string{"GET /_matrix/client/v1/room_summary/{roomIdOrAlias}", "GET /_matrix/client/v1/auth_metadata"}},
	{"v1.16", []string{ // room version 12, state_after, all profile fields
		"PUT /_matrix/client/v3/profile/{userId}/{keyName}", "GET /_matrix/client/v3/profile/{userId}/{keyName}",
		"DELETE /_matrix/client/v3/profile/{userId}/{keyName}",
	}},
	{"v1.17", nil}, // mentions by m.mentions alone, devices of application services
	{"v1.18", []string{ // invite blocking, policy servers, account management
		"GET /_matrix/client/v1/admin/lock/{userId}", "PUT /_matrix/client/v1/admin/lock/{userId}",
		"GET /_matrix/client/v1/admin/suspend/{userId}", "PUT /_matrix/client/v1/admin/suspend/{userId}",
	}},
	{"v1.19", []string{"GET /_matrix/client/v1/mutual_rooms"}}, // image packs, unsigned.replaces_state
}

// unstableFeatures are those that clients ask for by these names, because the specification has them under others or
// not yet.
var unstableFeatures = map[string]bool{
	"org.matrix.e2e_cross_signing":  true, // Element Web sets cross-signing up only where this is listed
	"org.matrix.simplified_msc3575": true, // sliding sync, which Element X needs
	"org.matrix.msc3814":            true, // dehydrated devices
	"org.matrix.msc3874":            true, // /messages by how events relate to others
	"org.matrix.msc3881":            true, // pushers that other devices switch off
	"org.matrix.msc4140":            true, // delayed events, which calls need
	"org.matrix.msc4143":            true, // media servers for calls

	"uk.half-shot.msc2666.query_mutual_rooms": true, // Element Web looks for no version here
}

// PromisedRoutes lists the patterns that the versions in GET /versions promise.
func PromisedRoutes() []string {
	var out []string
	for _, v := range specVersions {
		out = append(out, v.Added...)
	}
	return out
}

// versions handles GET /_matrix/client/versions. It is public and says the same to everybody.
func (a *API) versions(w http.ResponseWriter, _ *http.Request) error {
	names := make([]string, len(specVersions))
	for i, v := range specVersions {
		names[i] = v.Version
	}
	features := unstableFeatures
	if a.ThreadSubscriptions {
		features = maps.Clone(features)
		features["org.matrix.msc4306"] = true
	}
	return web.WriteJSON(w, map[string]any{"versions": names, "unstable_features": features})
}
