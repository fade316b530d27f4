package clientapi

import (
	"fmt"
	"net/http"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

// Clients back keys up and restore them in bulk: these routes draw from the larger bucket of reads.
func (a *API) keyBackupRoutes() []web.Route {
	const (
		versions = " /_matrix/client/v3/room_keys/version"
		keys     = " /_matrix/client/v3/room_keys/keys"
	)
	routes := []web.Route{
		{Pattern: "POST" + versions, Handler: a.createBackup},
		{Pattern: "GET" + versions, Handler: a.backup},
		{Pattern: "GET" + versions + "/{version}", Handler: a.backup},
		{Pattern: "PUT" + versions + "/{version}", Handler: a.updateBackup},
		{Pattern: "DELETE" + versions + "/{version}", Handler: a.deleteBackup},
		{Pattern: "PUT" + keys, Handler: a.putAllBackupKeys},
		{Pattern: "PUT" + keys + "/{roomId}", Handler: a.putRoomBackupKeys},
		{Pattern: "PUT" + keys + "/{roomId}/{sessionId}", Handler: a.putBackupKey},
		{Pattern: "GET" + keys, Handler: a.allBackupKeys},
		{Pattern: "GET" + keys + "/{roomId}", Handler: a.roomBackupKeys},
		{Pattern: "GET" + keys + "/{roomId}/{sessionId}", Handler: a.backupKey},
		{Pattern: "DELETE" + keys, Handler: a.deleteBackupKeys},
		{Pattern: "DELETE" + keys + "/{roomId}", Handler: a.deleteBackupKeys},
		{Pattern: "DELETE" + keys + "/{roomId}/{sessionId}", Handler: a.deleteBackupKeys},
	}
	for i := range routes {
		routes[i].Auth, routes[i].Rate, routes[i].AllowSuspended = web.User, web.RateRead, true
	}
	return routes
}

// maxBackupBody is the most bytes of keys in one request.
const maxBackupBody = 16 << 20

// backupBody is the body of POST and PUT /room_keys/version.
type backupBody struct {
	Algorithm *string        `json:"algorithm"`
	AuthData  jsontext.Value `json:"auth_data"`
	Version   string         `json:"version"`
}

func readBackupBody(r *http.Request) (backupBody, error) {
	req, err := web.ReadJSON[backupBody](r)
	switch {
	case err != nil:
	case req.Algorithm == nil:
		err = errMissing("algorithm")
	case len(req.AuthData) == 0:
		err = errMissing("auth_data")
	case req.AuthData.Kind() != '{':
		err = mxerr.BadJSON("'auth_data' must be an object")
	}
	return req, err
}

// createBackup handles POST /_matrix/client/v3/room_keys/version.
func (a *API) createBackup(w http.ResponseWriter, r *http.Request) error {
	req, err := readBackupBody(r)
	if err != nil {
		return err
	}
	version, err := a.Keys.CreateBackup(r.Context(), web.Requester(r).UserID, *req.Algorithm, req.AuthData)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]any{"version": version})
}

// backup handles GET /_matrix/client/v3/room_keys/version with and without a version.
func (a *API) backup(w http.ResponseWriter, r *http.Request) error {
	b, err := a.Keys.Backup(r.Context(), web.Requester(r).UserID, web.PathParam(r, "version"))
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]any{
		"algorithm": b.Algorithm,
		"auth_data": jsontext.Value(b.AuthData),
		"count":     b.Count,
		"etag":      strconv.FormatInt(b.ETag, 10),
		"version":   strconv.FormatInt(b.Version, 10),
	})
}

// updateBackup handles PUT /_matrix/client/v3/room_keys/version/{version}.
func (a *API) updateBackup(w http.ResponseWriter, r *http.Request) error {
	req, err := readBackupBody(r)
	if err != nil {
		return err
	}
	err = a.Keys.SetBackupAuthData(r.Context(), web.Requester(r).UserID, web.PathParam(r, "version"), req.Version, *req.Algorithm, req.AuthData)
	if err != nil {
		return err
	}
	return empty(w)
}

// deleteBackup handles DELETE /_matrix/client/v3/room_keys/version/{version}.
func (a *API) deleteBackup(w http.ResponseWriter, r *http.Request) error {
	if err := a.Keys.DeleteBackup(r.Context(), web.Requester(r).UserID, web.PathParam(r, "version")); err != nil {
		return err
	}
	return empty(w)
}

// backupKeyJSON is KeyBackupData of the specification.
type backupKeyJSON struct {
	FirstMessageIndex *int64         `json:"first_message_index"`
	ForwardedCount    *int64         `json:"forwarded_count"`
	IsVerified        *bool          `json:"is_verified"`
	SessionData       jsontext.Value `json:"session_data"`
}

func newBackupKeyJSON(k *account.BackupKey) backupKeyJSON {
	return backupKeyJSON{&k.FirstMessageIndex, &k.ForwardedCount, &k.IsVerified, jsontext.Value(k.SessionData)}
}

func (b *backupKeyJSON) key(roomID, sessionID string) (account.BackupKey, error) {
	switch {
	case b.FirstMessageIndex == nil || b.ForwardedCount == nil || b.IsVerified == nil || len(b.SessionData) == 0:
		return account.BackupKey{}, mxerr.BadJSON("a key must have first_message_index, forwarded_count, is_verified and session_data")
	case *b.FirstMessageIndex < 0 || *b.ForwardedCount < 0:
		return account.BackupKey{}, mxerr.BadJSON("first_message_index and forwarded_count must not be negative")
	case b.SessionData.Kind() != '{':
		return account.BackupKey{}, mxerr.BadJSON("'session_data' must be an object")
	}
	return account.BackupKey{
		RoomID:            roomID,
		SessionID:         sessionID,
		FirstMessageIndex: *b.FirstMessageIndex,
		ForwardedCount:    *b.ForwardedCount,
		IsVerified:        *b.IsVerified,
		SessionData:       []byte(b.SessionData),
	}, nil
}

// roomBackupJSON is RoomKeyBackup of the specification.
type roomBackupJSON struct {
	Sessions map[string]backupKeyJSON `json:"sessions"`
}

func (b *roomBackupJSON) keys(roomID string, out []account.BackupKey) ([]account.BackupKey, error) {
	if b.Sessions == nil {
		return nil, errMissing("sessions")
	}
	for session, k := range b.Sessions {
		key, err := k.key(roomID, session)
		if err != nil {
			return nil, err
		}
		out = append(out, key)
	}
	return out, nil
}

// putAllBackupKeys handles PUT /_matrix/client/v3/room_keys/keys.
func (a *API) putAllBackupKeys(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSONLimit[struct {
		Rooms map[id.RoomID]roomBackupJSON `json:"rooms"`
	}](r, maxBackupBody)
	if err != nil {
		return err
	}
	if req.Rooms == nil {
		return errMissing("rooms")
	}
	var keys []account.BackupKey
	for room, sessions := range req.Rooms {
		if keys, err = sessions.keys(string(room), keys); err != nil {
			return err
		}
	}
	return a.putBackupKeys(w, r, keys)
}

// putRoomBackupKeys handles PUT /_matrix/client/v3/room_keys/keys/{roomId}.
func (a *API) putRoomBackupKeys(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSONLimit[roomBackupJSON](r, maxBackupBody)
	if err != nil {
		return err
	}
	keys, err := req.keys(web.PathParam(r, "roomId"), nil)
	if err != nil {
		return err
	}
	return a.putBackupKeys(w, r, keys)
}

// putBackupKey handles PUT /_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}.
func (a *API) putBackupKey(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[backupKeyJSON](r)
	if err != nil {
		return err
	}
	key, err := req.key(web.PathParam(r, "roomId"), web.PathParam(r, "sessionId"))
	if err != nil {
		return err
	}
	return a.putBackupKeys(w, r, []account.BackupKey{key})
}

func backupVersion(r *http.Request) (string, error) {
	version := web.QueryString(r, "version")
	if version == "" {
		return "", mxerr.MissingParam("query parameter 'version' is required")
	}
	return version, nil
}

func writeBackupState(w http.ResponseWriter, b account.Backup) error {
	return web.WriteJSON(w, map[string]any{"etag": strconv.FormatInt(b.ETag, 10), "count": b.Count})
}

func (a *API) putBackupKeys(w http.ResponseWriter, r *http.Request, keys []account.BackupKey) error {
	version, err := backupVersion(r)
	if err != nil {
		return err
	}
	b, err := a.Keys.PutBackupKeys(r.Context(), web.Requester(r).UserID, version, keys)
	if err != nil {
		return err
	}
	return writeBackupState(w, b)
}

// backupKey handles GET /_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}.
func (a *API) backupKey(w http.ResponseWriter, r *http.Request) error {
	version, err := backupVersion(r)
	if err != nil {
		return err
	}
	key, err := a.Keys.BackupKey(r.Context(), web.Requester(r).UserID, version, web.PathParam(r, "roomId"), web.PathParam(r, "sessionId"))
	if err != nil {
		return err
	}
	return web.WriteJSON(w, newBackupKeyJSON(&key))
}

// roomBackupKeys handles GET /_matrix/client/v3/room_keys/keys/{roomId}.
func (a *API) roomBackupKeys(w http.ResponseWriter, r *http.Request) error {
	return a.writeBackupKeys(w, r, web.PathParam(r, "roomId"))
}

// allBackupKeys handles GET /_matrix/client/v3/room_keys/keys.
func (a *API) allBackupKeys(w http.ResponseWriter, r *http.Request) error {
	return a.writeBackupKeys(w, r, "")
}

// writeBackupKeys writes the keys of a room, or of all, as they are read: a backup may be larger than what memory
// should be spent on.
func (a *API) writeBackupKeys(w http.ResponseWriter, r *http.Request, roomID string) error {
	version, err := backupVersion(r)
	if err != nil {
		return err
	}
	out := backupWriter{w: w, oneRoom: roomID != ""}
	// An error behind the first page leaves an answer that is cut off, which no client can take for a whole one.
	if err := a.Keys.BackupKeys(r.Context(), web.Requester(r).UserID, version, roomID, out.page); err != nil {
		return err
	}
	return out.end()
}

// backupWriter writes keys that come ordered by room and session.
type backupWriter struct {
	w       http.ResponseWriter
	oneRoom bool
	begun   bool
	room    string // whose sessions are being written
	buf     []byte
}

func (b *backupWriter) page(keys []account.BackupKey) error {
	b.buf = b.buf[:0]
	if !b.begun {
		b.w.Header().Set("Content-Type", "application/json")
		b.w.Header().Set("Cache-Control", "no-store")
		b.begun = true
		if b.oneRoom {
			b.buf = append(b.buf, `{"sessions":{`...)
		} else {
			b.buf = append(b.buf, `{"rooms":{`...)
		}
	}
	for i := range keys {
		if err := b.key(&keys[i]); err != nil {
			return err
		}
	}
	_, err := b.w.Write(b.buf)
	return err
}

func (b *backupWriter) key(k *account.BackupKey) error {
	var err error
	switch {
	case k.RoomID == b.room:
		b.buf = append(b.buf, ',')
	case !b.oneRoom:
		if b.room != "" {
			b.buf = append(b.buf, `}},`...)
		}
		if b.buf, err = jsontext.AppendQuote(b.buf, k.RoomID); err != nil {
			return fmt.Errorf("write a backup: %w", err)
		}
		b.buf = append(b.buf, `:{"sessions":{`...)
	}
	b.room = k.RoomID
	if b.buf, err = jsontext.AppendQuote(b.buf, k.SessionID); err != nil {
		return fmt.Errorf("write a backup: %w", err)
	}
	raw, err := json.Marshal(newBackupKeyJSON(k))
	if err != nil {
		return fmt.Errorf("write a backup: %w", err)
	}
	b.buf = append(append(b.buf, ':'), raw...)
	return nil
}

func (b *backupWriter) end() error {
	tail := `}}`
	if !b.oneRoom && b.room != "" {
		tail = `}}}}`
	}
	_, err := b.w.Write([]byte(tail))
	return err
}

// deleteBackupKeys handles DELETE /_matrix/client/v3/room_keys/keys, of all, of a room, of a session.
func (a *API) deleteBackupKeys(w http.ResponseWriter, r *http.Request) error {
	version, err := backupVersion(r)
	if err != nil {
		return err
	}
	b, err := a.Keys.DeleteBackupKeys(r.Context(), web.Requester(r).UserID, version, web.PathParam(r, "roomId"), web.PathParam(r, "sessionId"))
	if err != nil {
		return err
	}
	return writeBackupState(w, b)
}
