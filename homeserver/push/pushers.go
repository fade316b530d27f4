package push

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

const (
	maxPushers     = 100 // of one user
	maxPusherData  = 16 << 10
	maxPusherText  = 255
	notifyPath     = "/_matrix/push/v1/notify"
	maxAppID       = 64  // characters. Spec: POST /pushers/set
	maxPushkey     = 512 // bytes
	eventIDOnly    = "event_id_only"
	kindHTTP       = "http"
	appEmail       = "m.email"
	errNoSuchEmail = "this server sends no notifications by mail"
)

// pusherJSON is a pusher in requests and responses.
type pusherJSON struct {
	Pushkey    string         `json:"pushkey"`
	Kind       *string        `json:"kind"`
	AppID      string         `json:"app_id"`
	AppName    *string        `json:"app_display_name"`
	DeviceName *string        `json:"device_display_name"`
	ProfileTag string         `json:"profile_tag,omitempty"`
	Lang       *string        `json:"lang"`
	Data       jsontext.Value `json:"data"`

	// MSC3881, by which a user's other devices switch it off and on
	Enabled *bool       `json:"org.matrix.msc3881.enabled,omitempty"`
	Device  id.DeviceID `json:"org.matrix.msc3881.device_id,omitempty"`
}

// getPushers handles GET /_matrix/client/v3/pushers.
func (p *Push) getPushers(w http.ResponseWriter, r *http.Request) error {
	var list []store.Pusher
	err := p.Store.Read(r.Context(), func(tx *store.Tx) error {
		var err error
		list, err = tx.Pushers(web.Requester(r).UserID)
		return err
	})
	if err != nil {
		return err
	}
	out := make([]pusherJSON, len(list))
	for i := range list {
		l := &list[i]
		enabled := !l.Disabled
		out[i] = pusherJSON{Pushkey: l.Pushkey, Kind: &l.Kind, AppID: l.AppID, AppName: &l.AppName, DeviceName: &l.DeviceName,
			ProfileTag: l.ProfileTag, Lang: &l.Lang, Data: l.Data, Enabled: &enabled, Device: l.Device}
	}
	return web.WriteJSON(w, map[string]any{"pushers": out})
}

// setPusher handles POST /_matrix/client/v3/pushers/set. A kind of null deletes.
func (p *Push) setPusher(w http.ResponseWriter, r *http.Request) error {
	body, err := web.ReadJSON[struct {
		pusherJSON
		KindRaw jsontext.Value `json:"kind"`
		Append  bool           `json:"append"`
	}](r)
	if err != nil {
		return err
	}
	if err := checkPusherKey(&body.pusherJSON, body.KindRaw); err != nil {
		return err
	}
	who := web.Requester(r)
	if body.KindRaw.Kind() == 'n' {
		err = p.Store.Write(r.Context(), func(tx *store.Tx) error { return tx.DeletePusher(who.UserID, body.AppID, body.Pushkey) })
		if err != nil {
			return err
		}
		return web.WriteJSON(w, struct{}{})
	}
	var kind string
	if err := json.Unmarshal(body.KindRaw, &kind); err != nil {
		return mxerr.BadJSON("kind must be a string or null")
	}
	if err := p.checkPusher(&body.pusherJSON, kind); err != nil {
		return err
	}
	set := store.Pusher{User: who.UserID, AppID: body.AppID, Pushkey: body.Pushkey, Kind: kind, AppName: *body.AppName,
		DeviceName: *body.DeviceName, ProfileTag: body.ProfileTag, Lang: *body.Lang, Data: body.Data, Device: who.DeviceID,
		Disabled: body.Enabled != nil && !*body.Enabled, Updated: time.Now().UnixMilli()}
	err = p.Store.Write(r.Context(), func(tx *store.Tx) error {
		if kind == kindEmail {
			if err := ownAddress(tx, who.UserID, set.Pushkey); err != nil {
				return err
			}
		}
		have, err := tx.Pushers(who.UserID)
		if err != nil {
			return err
		}
		n := 0
		for _, h := range have {
			if h.AppID != set.AppID || h.Pushkey != set.Pushkey {
				n++
			} else if body.Enabled != nil {
				set.Device = h.Device // whoever switches it does not become the device that it notifies
			}
		}
		if n >= maxPushers {
			return mxerr.InvalidParam(fmt.Sprintf("a user has at most %d pushers", maxPushers))
		}
		return tx.SetPusher(set, body.Append)
	})
	if err != nil {
		return err
	}
	return web.WriteJSON(w, struct{}{})
}

// ownAddress refuses addresses that the user has not confirmed: mail goes to nobody who did not ask for it.
func ownAddress(tx *store.Tx, user id.UserID, address string) error {
	own, err := tx.Threepids(user)
	if err != nil {
		return err
	}
	for _, t := range own {
		if t.Medium == "email" && strings.EqualFold(t.Address, address) {
			return nil
		}
	}
	return mxerr.New(http.StatusBadRequest, "M_THREEPID_NOT_FOUND", "the pushkey must be an e-mail address of your account")
}

// checkPusherKey checks what also a deletion needs.
func checkPusherKey(b *pusherJSON, kind jsontext.Value) error {
	var missing []string
	if b.AppID == "" {
		missing = append(missing, "app_id")
	}
	if b.Pushkey == "" {
		missing = append(missing, "pushkey")
	}
	if len(kind) == 0 {
		missing = append(missing, "kind")
	}
	if missing != nil {
		return mxerr.MissingParam("Missing parameters: " + strings.Join(missing, ", "))
	}
	if utf8.RuneCountInString(b.AppID) > maxAppID {
		return mxerr.InvalidParam(fmt.Sprintf("app_id has at most %d characters", maxAppID))
	}
	if len(b.Pushkey) > maxPushkey {
		return mxerr.InvalidParam(fmt.Sprintf("pushkey has at most %d bytes", maxPushkey))
	}
	return nil
}

// checkPusher checks what a pusher needs to be made.
func (p *Push) checkPusher(b *pusherJSON, kind string) error {
	switch kind {
	case kindHTTP:
	case kindEmail:
		if p.Emails == nil {
			return mxerr.InvalidParam(errNoSuchEmail)
		}
		if b.AppID != appEmail {
			return mxerr.InvalidParam("the app_id of a pusher of the kind email is " + appEmail)
		}
	default:
		return mxerr.InvalidParam("the kind of a pusher is http or email, or null to delete it")
	}
	var missing []string
	for _, f := range []struct {
		name  string
		value *string
	}{{"app_display_name", b.AppName}, {"device_display_name", b.DeviceName}, {"lang", b.Lang}} {
		if f.value == nil {
			missing = append(missing, f.name)
		} else if len(*f.value) > maxPusherText {
			return mxerr.InvalidParam(fmt.Sprintf("%s has at most %d bytes", f.name, maxPusherText))
		}
	}
	if len(b.Data) == 0 || b.Data.Kind() == 'n' {
		missing = append(missing, "data")
	}
	if missing != nil {
		return mxerr.MissingParam("Missing parameters: " + strings.Join(missing, ", "))
	}
	if len(b.ProfileTag) > maxPusherText {
		return mxerr.InvalidParam(fmt.Sprintf("profile_tag has at most %d bytes", maxPusherText))
	}
	if b.Data.Kind() != '{' || len(b.Data) > maxPusherData {
		return mxerr.BadJSON(fmt.Sprintf("data must be an object of at most %d bytes", maxPusherData))
	}
	data, err := parseData(b.Data)
	if err != nil {
		return mxerr.BadJSON("data.url and data.format must be strings")
	}
	if data.Format != "" && data.Format != "event_id_only" {
		// More than was wished for would be sent otherwise.
		return mxerr.InvalidParam("data.format must be event_id_only, or absent")
	}
	if kind == kindEmail {
		return nil
	}
	if data.URL == "" {
		return mxerr.MissingParam("Missing parameters: data.url")
	}
	u, err := url.Parse(data.URL)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.Path != notifyPath:
		return mxerr.InvalidParam("data.url must be an https URL with the path " + notifyPath)
	case u.Scheme != "https" && (u.Scheme != "http" || !p.Config.AllowHTTP):
		return mxerr.InvalidParam("data.url must begin with https://")
	}
	return nil
}

// pusherData is what of a pusher's data concerns this server.
type pusherData struct {
	URL    string `json:"url"`
	Format string `json:"format"`
}

func parseData(b []byte) (d pusherData, err error) { return d, json.Unmarshal(b, &d) }

// forwardedData is data without the url. Spec: "Servers MUST forward the entire content … excluding url".
func forwardedData(b []byte) (jsontext.Value, error) {
	var m map[string]jsontext.Value
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	delete(m, "url")
	return json.Marshal(m, json.Deterministic(true))
}
