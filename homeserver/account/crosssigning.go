package account

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

const (
	usageMaster      = "master"
	usageSelfSigning = "self_signing"
	usageUserSigning = "user_signing"
)

// ErrNeedsApproval says that keys can be replaced only after the user has proved to be there.
var ErrNeedsApproval = errors.New("replacing cross-signing keys needs user-interactive authentication")

// CrossSigningUpload holds the cross-signing keys that a user publishes, as JSON; absent ones are nil.
type CrossSigningUpload struct {
	Master, SelfSigning, UserSigning jsontext.Value
}

// UploadCrossSigning publishes cross-signing keys. approved tells that user-interactive authentication was done; where it
// is needed and was not, the error is ErrNeedsApproval. Other errors: M_MISSING_PARAM, M_BAD_JSON, M_INVALID_PARAM,
// M_INVALID_SIGNATURE, and M_FORBIDDEN for a key that is named like a device.
// Spec: client-server API, POST /keys/device_signing/upload.
func (k *Keys) UploadCrossSigning(ctx context.Context, user id.UserID, up CrossSigningUpload, approved bool) error {
	given := map[string]store.CrossSigningKey{}
	for usage, raw := range map[string]jsontext.Value{usageMaster: up.Master, usageSelfSigning: up.SelfSigning, usageUserSigning: up.UserSigning} {
		if !present(raw) {
			continue
		}
		key, err := parseCrossSigningKey(user, usage, raw)
		if err != nil {
			return err
		}
		given[usage] = key
	}
	if len(given) == 0 {
		// Clients ask with no keys to learn how users authenticate here.
		if !approved {
			return ErrNeedsApproval
		}
		return mxerr.MissingParam("the request has none of master_key, self_signing_key and user_signing_key")
	}
	return k.Store.Write(ctx, func(tx *store.Tx) error {
		if _, found, err := tx.LockUser(user); err != nil || !found {
			return errors.Join(err, errIf(!found, errNoUser))
		}
		stored, err := tx.CrossSigningKeys([]string{string(user)})
		if err != nil {
			return err
		}
		existing := make(map[string]store.CrossSigningKey, len(stored))
		for _, s := range stored {
			existing[s.Usage] = s
		}
		if err := checkCrossSigning(given, existing); err != nil {
			return err
		}
		if nothingNew(given, existing) {
			return nil
		}
		if _, replaces := existing[usageMaster]; replaces && !approved {
			if err := spendOpening(tx, user, k.Clock().UnixMilli()); err != nil {
				return err
			}
		}
		return replaceCrossSigning(ctx, tx, user, given, existing)
	})
}

// spendOpening takes what Accounts.OpenKeys gave, in place of an authentication.
func spendOpening(tx *store.Tx, user id.UserID, now int64) error {
	until, err := tx.KeysOpenUntil(user)
	if err != nil {
		return err
	}
	if until <= now {
		return ErrNeedsApproval
	}
	return tx.OpenKeys(user, 0)
}

// parseCrossSigningKey checks a key by itself.
func parseCrossSigningKey(user id.UserID, usage string, raw []byte) (store.CrossSigningKey, error) {
	field := "'" + usage + "_key"
	in, err := web.DecodeObject[struct {
		UserID     *id.UserID                   `json:"user_id"`
		Usage      *[]string                    `json:"usage"`
		Keys       map[string]string            `json:"keys"`
		Signatures map[string]map[string]string `json:"signatures"`
	}](raw)
	switch {
	case err != nil:
		return store.CrossSigningKey{}, err
	case in.UserID == nil, in.Usage == nil, in.Keys == nil:
		return store.CrossSigningKey{}, mxerr.BadJSON(field + "' must have user_id, usage and keys")
	case *in.UserID != user:
		return store.CrossSigningKey{}, mxerr.InvalidParam(field + ".user_id' must be " + string(user))
	case !slices.Contains(*in.Usage, usage):
		return store.CrossSigningKey{}, mxerr.InvalidParam(field + ".usage' must name " + usage)
	case len(in.Keys) != 1:
		return store.CrossSigningKey{}, mxerr.InvalidParam(field + ".keys' must have exactly one key")
	}
	var public string
	for name, value := range in.Keys {
		pub, err := event.DecodeBase64(value)
		if name != "ed25519:"+value || err != nil || len(pub) != 32 {
			return store.CrossSigningKey{}, mxerr.InvalidParam(field + ".keys' must hold an ed25519 public key under ed25519: and the key itself")
		}
		public = value
	}
	body, err := event.CanonicalJSON(raw)
	if err != nil {
		return store.CrossSigningKey{}, err
	}
	return store.CrossSigningKey{User: user, Usage: usage, Key: public, Body: without(body, "unsigned")}, nil
}

// checkCrossSigning checks that the keys given are signed by the master key and differ from each other.
func checkCrossSigning(given, existing map[string]store.CrossSigningKey) error {
	master, ok := given[usageMaster]
	if !ok {
		if master, ok = existing[usageMaster]; !ok {
			return mxerr.MissingParam("'master_key' is required: there is none yet")
		}
	}
	names := map[string]bool{master.Key: true}
	for _, usage := range []string{usageSelfSigning, usageUserSigning} {
		key, ok := given[usage]
		if !ok {
			continue
		}
		if names[key.Key] {
			return mxerr.InvalidParam("the cross-signing keys must differ from each other")
		}
		names[key.Key] = true
		if err := verifySigned(key.Body, key.User, "ed25519:"+master.Key, master.Key); err != nil {
			return err
		}
	}
	return nil
}

// nothingNew tells whether a request repeats the keys that are there.
func nothingNew(given, existing map[string]store.CrossSigningKey) bool {
	for usage, key := range given {
		old, ok := existing[usage]
		if !ok || !bytes.Equal(signedPart(old.Body), signedPart(key.Body)) {
			return false
		}
	}
	return true
}

func replaceCrossSigning(ctx context.Context, tx *store.Tx, user id.UserID, given, existing map[string]store.CrossSigningKey) error {
	var names []string
	for _, key := range given {
		names = append(names, key.Key)
	}
	if used, err := tx.AnyDevice(user, names); err != nil {
		return err
	} else if used {
		return mxerr.Forbidden("a cross-signing key has the id of one of your devices")
	}
	master, changed := given[usageMaster]
	changed = changed && master.Key != existing[usageMaster].Key
	for _, usage := range []string{usageMaster, usageSelfSigning, usageUserSigning} {
		key, ok := given[usage]
		old, had := existing[usage]
		// A new master key leaves keys behind that nothing vouches for any more.
		if had && (ok && old.Key != key.Key || !ok && changed) {
			if err := tx.DeleteCrossSigningKey(user, usage, old.Key); err != nil {
				return err
			}
		}
		if ok {
			if err := tx.SetCrossSigningKey(key); err != nil {
				return err
			}
		}
	}
	action := "keys.cross_signing.set"
	if changed && existing[usageMaster].Key != "" {
		action = "keys.cross_signing.replaced"
	}
	usages := slices.Sorted(maps.Keys(given))
	if err := audit.Append(ctx, tx, audit.Entry{Action: action, Target: string(user), Details: map[string]any{"keys": usages}}); err != nil {
		return err
	}
	return tx.AnnounceDeviceList(user)
}

// SignatureFailure says why a signature was not taken.
type SignatureFailure struct {
	Errcode string `json:"errcode"`
	Error   string `json:"error"`
}

// SignatureUpload holds signed keys by their owner and by their id: a device id or a cross-signing public key.
type SignatureUpload map[id.UserID]map[string]jsontext.Value

// UploadSignatures adds the user's signatures to keys: of the self-signing key to the user's devices, of the user's devices
// to the master key, of the user-signing key to other users' master keys. It returns those that were refused.
// Spec: client-server API, POST /keys/signatures/upload.
func (k *Keys) UploadSignatures(ctx context.Context, user id.UserID, up SignatureUpload) (map[id.UserID]map[string]SignatureFailure, error) {
	users := []string{string(user)}
	for owner, keys := range up {
		if _, _, err := isLocal(k.ServerName, owner); err != nil {
			return nil, err
		}
		for _, raw := range keys {
			if raw.Kind() != '{' {
				return nil, mxerr.BadJSON("signed keys must be objects")
			}
		}
		users = append(users, string(owner))
	}
	var failures map[id.UserID]map[string]SignatureFailure
	err := k.Store.Write(ctx, func(tx *store.Tx) error {
		failures = map[id.UserID]map[string]SignatureFailure{}
		known, err := loadSigned(tx, user, users)
		if err != nil {
			return err
		}
		var changed []id.UserID
		for owner, keys := range up {
			any := false
			for target, raw := range keys {
				signatures, err := known.check(user, owner, target, raw)
				if e := mxerr.As(err); e != nil {
					if failures[owner] == nil {
						failures[owner] = map[string]SignatureFailure{}
					}
					failures[owner][target] = SignatureFailure{e.Code, e.Message}
					continue
				} else if err != nil {
					return err
				}
				for _, s := range signatures {
					added, err := tx.SetKeySignature(s)
					if err != nil {
						return err
					}
					any = any || added
				}
			}
			if any {
				changed = append(changed, owner)
			}
		}
		return announceSignatures(tx, user, changed)
	})
	return failures, err
}

func announceSignatures(tx *store.Tx, user id.UserID, owners []id.UserID) error {
	slices.Sort(owners)
	for _, owner := range owners {
		var err error
		if owner == user {
			err = tx.AnnounceDeviceList(user)
		} else {
			err = tx.AnnounceSigned(user, owner)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// signedKeys is what signatures are checked against.
type signedKeys struct {
	crossSigning map[id.UserID]map[string]store.CrossSigningKey // by usage
	devices      map[id.DeviceID][]byte                         // the signer's own
}

func loadSigned(tx *store.Tx, user id.UserID, users []string) (*signedKeys, error) {
	known := &signedKeys{crossSigning: map[id.UserID]map[string]store.CrossSigningKey{}, devices: map[id.DeviceID][]byte{}}
	keys, err := tx.CrossSigningKeys(users)
	if err != nil {
		return nil, err
	}
	for _, key := range keys {
		if known.crossSigning[key.User] == nil {
			known.crossSigning[key.User] = map[string]store.CrossSigningKey{}
		}
		known.crossSigning[key.User][key.Usage] = key
	}
	devices, err := tx.DeviceKeys([]string{string(user)})
	for _, d := range devices {
		known.devices[d.Device] = d.Body
	}
	return known, err
}

// check finds the good signatures that user made on a key of owner.
func (s *signedKeys) check(user, owner id.UserID, target string, raw []byte) ([]store.KeySignature, error) {
	obj, err := event.CanonicalJSON(raw)
	if err != nil {
		return nil, err
	}
	master, hasMaster := s.crossSigning[owner][usageMaster]
	isMaster := hasMaster && master.Key == target
	device, isDevice := s.devices[id.DeviceID(target)]
	isDevice = isDevice && owner == user
	var stored []byte
	switch {
	case isMaster:
		stored = master.Body
	case isDevice:
		stored = device
	default:
		return nil, mxerr.NotFound("there is no such key")
	}
	if !bytes.Equal(signedPart(stored), signedPart(obj)) {
		return nil, invalidSignature("the signed key is not the one that was uploaded")
	}
	if isMaster && owner == user {
		return s.byDevices(user, target, obj)
	}
	usage := usageUserSigning
	if isDevice {
		usage = usageSelfSigning
	}
	signing, ok := s.crossSigning[user][usage]
	if !ok {
		return nil, invalidSignature("you have no " + usage + " key")
	}
	keyID := "ed25519:" + signing.Key
	if err := verifySigned(obj, user, keyID, signing.Key); err != nil {
		return nil, err
	}
	return []store.KeySignature{signature(obj, owner, target, user, keyID)}, nil
}

// byDevices finds the signatures that a user's devices made on the master key. One wrong signature refuses all; those of
// keys that are not known are passed over, since clients send what they find on the key along with their own.
func (s *signedKeys) byDevices(user id.UserID, target string, obj []byte) ([]store.KeySignature, error) {
	var out []store.KeySignature
	var refused error
	gjson.GetBytes(obj, "signatures").ForEach(func(signer, list gjson.Result) bool {
		if signer.String() != string(user) {
			return true
		}
		list.ForEach(func(name, _ gjson.Result) bool {
			keyID := name.String()
			device, _ := strings.CutPrefix(keyID, "ed25519:")
			body, ok := s.devices[id.DeviceID(device)]
			if !ok {
				return true
			}
			if refused = verifySigned(obj, user, keyID, stringAt(body, "keys", keyID)); refused != nil {
				return false
			}
			out = append(out, signature(obj, user, target, user, keyID))
			return true
		})
		return false
	})
	if refused == nil && len(out) == 0 {
		refused = invalidSignature("there is no signature by one of your devices")
	}
	return out, refused
}

func signature(obj []byte, owner id.UserID, target string, signer id.UserID, keyID string) store.KeySignature {
	return store.KeySignature{User: owner, Target: target, Signer: signer, KeyID: keyID,
		Signature: stringAt(obj, "signatures", string(signer), keyID)}
}

// stringAt reads a string at a path of names in which every character stands for itself.
func stringAt(obj []byte, names ...string) string {
	v := gjson.ParseBytes(obj)
	for _, name := range names {
		var next gjson.Result
		v.ForEach(func(key, value gjson.Result) bool {
			if key.String() == name {
				next = value
				return false
			}
			return true
		})
		v = next
	}
	return v.String()
}
