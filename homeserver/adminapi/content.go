package adminapi

import (
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/moothall/moothall/homeserver/account"
)

// setUserLevel gives the content of m.room.power_levels with one user's level changed; all else stays as it is.
func setUserLevel(content []byte, user string, level int64) (jsontext.Value, error) {
	var levels map[string]jsontext.Value
	if err := json.Unmarshal(content, &levels); err != nil {
		return nil, err
	}
	users := map[string]jsontext.Value{}
	if raw, ok := levels["users"]; ok && raw.Kind() == '{' {
		if err := json.Unmarshal(raw, &users); err != nil {
			return nil, err
		}
	}
	n, err := json.Marshal(level)
	if err != nil {
		return nil, err
	}
	users[user] = n
	if levels["users"], err = json.Marshal(users, json.Deterministic(true)); err != nil {
		return nil, err
	}
	return json.Marshal(levels, json.Deterministic(true))
}

// memberContent is the content of an m.room.member event with the member's profile.
func memberContent(membership string, p account.Profile) ([]byte, error) {
	return json.Marshal(struct {
		Membership  string `json:"membership"`
		DisplayName string `json:"displayname,omitzero"`
		AvatarURL   string `json:"avatar_url,omitzero"`
	}{membership, p.DisplayName, p.AvatarURL})
}

// timeOf is a time given in milliseconds since 1970.
func timeOf(ms int64) time.Time { return time.UnixMilli(ms) }
