package account

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// KeysDeps is what Keys works with.
type KeysDeps struct {
	Store      *store.Store
	ServerName string
	Logger     *slog.Logger
	Clock      func() time.Time // nil: time.Now
}

// Keys reads and writes the end-to-end encryption keys of devices and users, the backups of room keys, and the messages
// between devices.
type Keys struct {
	KeysDeps
	counts *logCache[store.DeviceID, keyCounts]
}

// keyCounts is what /sync tells a device of its keys.
type keyCounts struct {
	oneTime        map[string]int
	unusedFallback []string
}

const maxCachedCounts = 50_000

// NewKeys makes Keys.
func NewKeys(d KeysDeps) *Keys {
	if d.Clock == nil {
		d.Clock = time.Now
	}
	if d.Logger == nil {
		d.Logger = slog.Default()
	}
	return &Keys{KeysDeps: d, counts: newLogCache[store.DeviceID, keyCounts](maxCachedCounts)}
}

// Listener keeps what is cached true to the log.
func (k *Keys) Listener() store.Listener {
	return store.Listener{Apply: func(entries []store.Entry) {
		for i := range entries {
			switch e := &entries[i]; e.Kind {
			case store.KindReset:
				k.counts.clear()
			case store.KindKeys:
				k.counts.drop(store.DeviceID{User: id.UserID(e.User), Device: id.DeviceID(e.Key)})
			}
		}
	}}
}

// DeviceDeleted removes what belongs to a device; it is one of Deps.OnDeviceDeleted.
func (k *Keys) DeviceDeleted(tx *store.Tx, user id.UserID, device id.DeviceID) error {
	listed, claimable, err := tx.DeleteDeviceKeys(user, device)
	if err != nil {
		return err
	}
	// From here on nobody sends to the device any more: senders look devices up under this lock.
	if err := tx.LockHead(); err != nil {
		return err
	}
	if err := tx.DropToDevice(user, device); err != nil {
		return err
	}
	if claimable {
		if err := tx.AnnounceKeys(user, device); err != nil {
			return err
		}
	}
	if listed {
		return tx.AnnounceDeviceList(user)
	}
	return nil
}

// isLocal tells whether a user belongs to this server, and the name of the server that the user belongs to. What is no
// user id is M_INVALID_PARAM.
func isLocal(serverName string, user id.UserID) (local bool, server string, err error) {
	name, server, ok := strings.Cut(string(user), ":")
	if !ok || !strings.HasPrefix(name, "@") || server == "" {
		return false, "", mxerr.InvalidParam(fmt.Sprintf("%q is not a user id", string(user)))
	}
	return server == serverName, server, nil
}

const (
	signedCurve25519 = "signed_curve25519"
	maxKeyID         = 255  // bytes of a key's name, algorithm included
	maxOneTimeKeys   = 1000 // unclaimed keys of a device; clients keep 50 to 100
)

// KeyUpload is what a device publishes. Absent parts are nil; values are JSON.
type KeyUpload struct {
	DeviceKeys   jsontext.Value
	OneTimeKeys  map[string]jsontext.Value // by "algorithm:id"
	FallbackKeys map[string]jsontext.Value
}

// Upload publishes keys of a device and returns the number of its unclaimed one-time keys by algorithm. Errors:
// M_BAD_JSON, M_INVALID_PARAM, M_UNKNOWN for another one-time key of an id that is there already.
// Spec: client-server API, "Uploading keys".
func (k *Keys) Upload(ctx context.Context, user id.UserID, device id.DeviceID, up KeyUpload) (map[string]int, error) {
	if device == "" {
		return nil, mxerr.InvalidParam("keys belong to a device, and this access token has none")
	}
	var identity []byte
	if present(up.DeviceKeys) {
		var err error
		if identity, err = checkDeviceKeys(user, device, up.DeviceKeys); err != nil {
			return nil, err
		}
	}
	oneTime, err := parseKeys(user, device, "one_time_keys", up.OneTimeKeys)
	if err != nil {
		return nil, err
	}
	fallback, err := parseKeys(user, device, "fallback_keys", up.FallbackKeys)
	if err != nil {
		return nil, err
	}
	for i := 1; i < len(fallback); i++ {
		if fallback[i].Algorithm == fallback[i-1].Algorithm {
			return nil, mxerr.InvalidParam("'fallback_keys' may hold one key of each algorithm")
		}
	}
	if identity == nil && len(oneTime) == 0 && len(fallback) == 0 {
		counts, _, err := k.OTKCounts(ctx, user, device)
		return counts, err
	}
	var counts map[string]int
	err = k.Store.Write(ctx, func(tx *store.Tx) error {
		if found, err := tx.LockDevice(user, device); err != nil {
			return err
		} else if !found {
			return mxerr.UnknownToken("this device was deleted", false)
		}
		listed, err := putDeviceKeys(tx, user, device, identity)
		if err != nil {
			return err
		}
		counted, err := putOneTimeKeys(tx, user, device, oneTime)
		if err != nil {
			return err
		}
		for _, f := range fallback {
			changed, err := tx.SetFallbackKey(f)
			if err != nil {
				return err
			}
			counted = counted || changed
		}
		if counts, _, err = tx.KeyCounts(user, device); err != nil {
			return err
		}
		if counted {
			if err := tx.AnnounceKeys(user, device); err != nil {
				return err
			}
		}
		if listed {
			return tx.AnnounceDeviceList(user)
		}
		return nil
	})
	return withZero(counts), err
}

// present tells whether an optional member was given.
func present(v jsontext.Value) bool { return len(v) > 0 && v.Kind() != 'n' }

// withZero names the one algorithm that all clients use even where there is no key of it: some take an absent count for
// an unknown one.
func withZero(counts map[string]int) map[string]int {
	if counts == nil {
		return nil
	}
	if _, ok := counts[signedCurve25519]; !ok {
		counts[signedCurve25519] = 0
	}
	return counts
}

func invalidSignature(msg string) *mxerr.Error {
	return mxerr.New(http.StatusBadRequest, "M_INVALID_SIGNATURE", msg)
}

// verifySigned checks a signature of signed JSON by a public key in base64.
func verifySigned(obj []byte, signer id.UserID, keyID, public string) error {
	pub, err := event.DecodeBase64(public)
	if err != nil {
		return invalidSignature("the public key " + keyID + " is not base64")
	}
	err = event.VerifyJSON(obj, string(signer), keyID, pub)
	if e := mxerr.As(err); e != nil && e.Code == "M_FORBIDDEN" {
		return invalidSignature(e.Message)
	}
	return err
}

// signedPart is what the signatures of canonical JSON cover.
func signedPart(obj []byte) []byte { return without(obj, "signatures", "unsigned") }

// without copies an object but for some members. obj is valid JSON.
func without(obj []byte, names ...string) []byte {
	out := append(make([]byte, 0, len(obj)), '{')
	gjson.ParseBytes(obj).ForEach(func(key, value gjson.Result) bool {
		if !slices.Contains(names, key.String()) {
			if len(out) > 1 {
				out = append(out, ',')
			}
			out = append(append(append(out, key.Raw...), ':'), value.Raw...)
		}
		return true
	})
	return append(out, '}')
}

// checkDeviceKeys checks whose identity keys these are and returns them as they are stored. Whether a device signed them is
// for clients to judge (decision 0441).
func checkDeviceKeys(user id.UserID, device id.DeviceID, raw []byte) ([]byte, error) {
	in, err := web.DecodeObject[struct {
		UserID     *id.UserID                   `json:"user_id"`
		DeviceID   *id.DeviceID                 `json:"device_id"`
		Algorithms *[]string                    `json:"algorithms"`
		Keys       map[string]string            `json:"keys"`
		Signatures map[string]map[string]string `json:"signatures"`
	}](raw)
	switch {
	case err != nil:
		return nil, err
	case in.UserID == nil, in.DeviceID == nil, in.Algorithms == nil, in.Keys == nil, in.Signatures == nil:
		return nil, mxerr.BadJSON("'device_keys' must have user_id, device_id, algorithms, keys and signatures")
	case *in.UserID != user:
		return nil, mxerr.InvalidParam("'device_keys.user_id' must be " + string(user))
	case *in.DeviceID != device:
		return nil, mxerr.InvalidParam("'device_keys.device_id' must be " + string(device))
	}
	canonical, err := event.CanonicalJSON(raw)
	if err != nil {
		return nil, err
	}
	return without(canonical, "unsigned"), nil
}

// putDeviceKeys stores identity keys and tells whether others see a change.
func putDeviceKeys(tx *store.Tx, user id.UserID, device id.DeviceID, identity []byte) (bool, error) {
	if identity == nil {
		return false, nil
	}
	old, err := tx.DeviceKeysOf(user, device)
	if err != nil || bytes.Equal(old, identity) {
		return false, err
	}
	if old != nil && !bytes.Equal(signedPart(old), signedPart(identity)) {
		if err := tx.DeleteSignatures(user, string(device)); err != nil {
			return false, err
		}
	}
	return true, tx.SetDeviceKeys(user, device, identity)
}

// parseKeys checks one-time or fallback keys; the result is sorted by name.
func parseKeys(user id.UserID, device id.DeviceID, field string, in map[string]jsontext.Value) ([]store.OneTimeKey, error) {
	out := make([]store.OneTimeKey, 0, len(in))
	for name, raw := range in {
		algorithm, keyID, ok := strings.Cut(name, ":")
		if !ok || algorithm == "" || keyID == "" || len(name) > maxKeyID {
			return nil, mxerr.InvalidParam(fmt.Sprintf("the names in '%s' must be algorithm:id with at most %d bytes", field, maxKeyID))
		}
		if raw.Kind() != '"' {
			key, err := web.DecodeObject[struct {
				Key        *string                       `json:"key"`
				Signatures *map[string]map[string]string `json:"signatures"`
				Fallback   bool                          `json:"fallback"`
			}](raw)
			if err != nil {
				return nil, err
			}
			if key.Key == nil || key.Signatures == nil {
				return nil, mxerr.BadJSON(fmt.Sprintf("the keys in '%s' must be strings or objects with key and signatures", field))
			}
		} else if algorithm == signedCurve25519 {
			return nil, mxerr.BadJSON(fmt.Sprintf("'%s' must be an object with key and signatures", field+"."+name))
		}
		body, err := canonicalValue(raw)
		if err != nil {
			return nil, err
		}
		out = append(out, store.OneTimeKey{User: user, Device: device, Algorithm: algorithm, KeyID: keyID, Body: body})
	}
	slices.SortFunc(out, func(a, b store.OneTimeKey) int {
		if c := strings.Compare(a.Algorithm, b.Algorithm); c != 0 {
			return c
		}
		return strings.Compare(a.KeyID, b.KeyID)
	})
	return out, nil
}

func canonicalValue(raw jsontext.Value) ([]byte, error) {
	if raw.Kind() == '{' {
		return event.CanonicalJSON(raw)
	}
	out := raw.Clone()
	if err := out.Canonicalize(); err != nil {
		return nil, mxerr.BadJSON("a key is not valid JSON")
	}
	return out, nil
}

// putOneTimeKeys adds the keys that are not there yet and tells whether there were any.
func putOneTimeKeys(tx *store.Tx, user id.UserID, device id.DeviceID, keys []store.OneTimeKey) (bool, error) {
	if len(keys) == 0 {
		return false, nil
	}
	stored, last, err := tx.OneTimeKeys(user, device)
	if err != nil {
		return false, err
	}
	type name struct{ algorithm, keyID string }
	there := make(map[name][]byte, len(stored))
	for _, s := range stored {
		there[name{s.Algorithm, s.KeyID}] = s.Body
	}
	var added []store.OneTimeKey
	for _, n := range keys {
		old, ok := there[name{n.Algorithm, n.KeyID}]
		switch {
		case !ok:
			added = append(added, n)
		case !sameKey(old, n.Body):
			return false, mxerr.New(http.StatusBadRequest, "M_UNKNOWN",
				fmt.Sprintf("another one-time key %s:%s was uploaded already and is not claimed yet", n.Algorithm, n.KeyID))
		}
	}
	if len(stored)+len(added) > maxOneTimeKeys {
		return false, mxerr.InvalidParam(fmt.Sprintf("a device may have at most %d unclaimed one-time keys", maxOneTimeKeys))
	}
	return len(added) > 0, tx.InsertOneTimeKeys(added, last)
}

// sameKey compares two keys but for their signatures, of which there may be many good ones.
func sameKey(a, b []byte) bool {
	if len(a) > 0 && len(b) > 0 && a[0] == '{' && b[0] == '{' {
		return bytes.Equal(signedPart(a), signedPart(b))
	}
	return bytes.Equal(a, b)
}

// OTKCounts tells how many unclaimed one-time keys of each algorithm a device has, and the algorithms of its fallback
// keys that were not given out. The results are shared: they must not be changed.
// Spec: client-server API, "Extensions to /sync" of end-to-end encryption.
func (k *Keys) OTKCounts(ctx context.Context, user id.UserID, device id.DeviceID) (counts map[string]int, unusedFallback []string, err error) {
	c, err := k.counts.get(ctx, store.DeviceID{User: user, Device: device}, func(ctx context.Context) (keyCounts, error) {
		var c keyCounts
		err := k.Store.Read(ctx, func(tx *store.Tx) error {
			var err error
			c.oneTime, c.unusedFallback, err = tx.KeyCounts(user, device)
			c.oneTime = withZero(c.oneTime)
			return err
		})
		return c, err
	})
	return c.oneTime, c.unusedFallback, err
}
