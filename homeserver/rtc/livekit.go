package rtc

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/web"
)

// livekitPath is where clients exchange an OpenID token for one of LiveKit.
const livekitPath = "/_moothall/livekit"

// defaultSlot is the call of a room that clients of the older form mean.
const defaultSlot = "m.call#ROOM"

// tokenLife is how long a token lets its bearer connect; a connection that stands goes on.
const tokenLife = time.Hour

type openIDCredentials struct {
	AccessToken string `json:"access_token"`
	TokenType   string `json:"token_type"`
	ServerName  string `json:"matrix_server_name"`
	ExpiresIn   int64  `json:"expires_in"`
}

// sfuToken handles POST /sfu/get: {room, openid_token, device_id}.
func (s *RTC) sfuToken(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[struct {
		Room     id.RoomID         `json:"room"`
		OpenID   openIDCredentials `json:"openid_token"`
		DeviceID id.DeviceID       `json:"device_id"`
	}](r)
	if err != nil {
		return err
	}
	if req.Room == "" || req.DeviceID == "" {
		return mxerr.MissingParam("'room', 'openid_token' and 'device_id' are required")
	}
	user, err := s.openIDUser(r.Context(), req.OpenID)
	if err != nil {
		return err
	}
	return s.grant(w, r, req.Room, defaultSlot, user, string(user)+":"+string(req.DeviceID))
}

// memberToken handles POST /get_token: {room_id, slot_id, openid_token, member}. The identity on the media server is made so
// that it tells nobody who it is.
func (s *RTC) memberToken(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[struct {
		RoomID id.RoomID         `json:"room_id"`
		SlotID string            `json:"slot_id"`
		OpenID openIDCredentials `json:"openid_token"`
		Member struct {
			ID     string      `json:"id"`
			User   id.UserID   `json:"claimed_user_id"`
			Device id.DeviceID `json:"claimed_device_id"`
		} `json:"member"`
	}](r)
	if err != nil {
		return err
	}
	if req.RoomID == "" || req.SlotID == "" || req.Member.ID == "" || req.Member.User == "" || req.Member.Device == "" {
		return mxerr.MissingParam("'room_id', 'slot_id', 'openid_token' and 'member' with its id, claimed_user_id and claimed_device_id are required")
	}
	user, err := s.openIDUser(r.Context(), req.OpenID)
	if err != nil {
		return err
	}
	if req.Member.User != user {
		return mxerr.New(http.StatusUnauthorized, "M_UNAUTHORIZED", "the OpenID token is not that of 'claimed_user_id'")
	}
	return s.grant(w, r, req.RoomID, req.SlotID, user, digest(string(user), string(req.Member.Device), req.Member.ID))
}

// openIDUser finds whose an OpenID token is. Tokens of other servers are refused: this server talks to none.
func (s *RTC) openIDUser(ctx context.Context, c openIDCredentials) (id.UserID, error) {
	refused := mxerr.New(http.StatusUnauthorized, "M_UNAUTHORIZED", "the OpenID token is not one of this server, or it has expired")
	if c.AccessToken == "" || c.ServerName != s.ServerName {
		return "", refused
	}
	user, err := s.Accounts.OpenIDUser(ctx, c.AccessToken)
	if mxerr.As(err) != nil {
		return "", refused
	}
	return user, err
}

// livekitClaims are the claims of LiveKit's access tokens.
type livekitClaims struct {
	jwt.Claims
	Video livekitGrant `json:"video"`
}

type livekitGrant struct {
	Room         string `json:"room"`
	RoomJoin     bool   `json:"roomJoin"`
	RoomCreate   bool   `json:"roomCreate"`
	CanPublish   bool   `json:"canPublish"`
	CanSubscribe bool   `json:"canSubscribe"`
}

// grant answers with a token for the media server, for members of the room only.
func (s *RTC) grant(w http.ResponseWriter, r *http.Request, roomID id.RoomID, slot string, user id.UserID, identity string) error {
	rm, err := s.Rooms.Room(r.Context(), roomID)
	if err != nil && !mxerr.Is(err, "M_NOT_FOUND") {
		return err
	}
	if err != nil || rm.Membership(user) != room.MembershipJoin {
		return mxerr.Forbidden("you are not in this room, or there is no such room on this server")
	}
	c := s.Config.LiveKit
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: []byte(c.APISecret)}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return err
	}
	now := s.Now()
	token, err := jwt.Signed(signer).Claims(livekitClaims{
		Claims: jwt.Claims{Issuer: c.APIKey, Subject: identity, NotBefore: jwt.NewNumericDate(now.Add(-10 * time.Second)), Expiry: jwt.NewNumericDate(now.Add(tokenLife))},
		Video:  livekitGrant{Room: digest(string(roomID), slot), RoomJoin: true, RoomCreate: true, CanPublish: true, CanSubscribe: true},
	}).Serialize()
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]string{"url": c.URL, "jwt": token})
}

// digest names something by what it is made of.
func digest(parts ...string) string {
	h := sha256.New()
	for i, p := range parts {
		if i > 0 {
			h.Write([]byte{'|'})
		}
		h.Write([]byte(p))
	}
	return base64.RawStdEncoding.EncodeToString(h.Sum(nil))
}

// healthy handles GET /healthz, by which clients and monitors see that the exchange is there.
func (s *RTC) healthy(w http.ResponseWriter, _ *http.Request) error {
	return web.WriteJSON(w, struct{}{})
}
