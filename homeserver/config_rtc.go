package homeserver

import (
	"net/url"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/moothall/moothall/homeserver/rtc"
)

// RTC is about calls over a media server.
type RTC struct {
	LiveKit    LiveKit          `yaml:"livekit"`
	Transports []map[string]any `yaml:"transports"`
	MaxDelay   Duration         `yaml:"max_delay"`
}

// LiveKit names the organisation's own LiveKit server.
type LiveKit struct {
	URL           string `yaml:"url"`
	APIKey        string `yaml:"api_key"`
	APISecret     Secret `yaml:"api_secret"`
	APISecretFile string `yaml:"api_secret_file"`
}

// Notices is about what the server itself writes to users.
type Notices struct {
	RoomName string `yaml:"room_name"`
	AutoJoin bool   `yaml:"auto_join"`
}

// checkRTC looks at the section rtc.
func (c *Config) checkRTC(d *configReader) error {
	l := c.RTC.LiveKit
	if l.URL != "" {
		u, err := url.Parse(l.URL)
		if err != nil || u.Host == "" || u.Scheme != "wss" && u.Scheme != "ws" && u.Scheme != "https" && u.Scheme != "http" {
			return d.complain("rtc.livekit.url", "is %q; it must be like wss://livekit.example.org", l.URL)
		}
		if l.APIKey == "" || l.APISecret == "" {
			return d.complain("rtc.livekit.url", "needs rtc.livekit.api_key and rtc.livekit.api_secret, a pair of the keys of the LiveKit server")
		}
	}
	for i, t := range c.RTC.Transports {
		if s, ok := t["type"].(string); !ok || s == "" {
			return d.complain(index("rtc.transports", i), "must have a type")
		}
	}
	if c.RTC.MaxDelay.Std() < minute {
		return d.complain("rtc.max_delay", "must be at least \"1m\"")
	}
	return nil
}

// rtcConfig is the section as package rtc takes it.
func (c *Config) rtcConfig() (rtc.Config, error) {
	out := rtc.Config{MaxDelay: c.RTC.MaxDelay.Std(), LiveKit: rtc.LiveKit{URL: c.RTC.LiveKit.URL, APIKey: c.RTC.LiveKit.APIKey, APISecret: string(c.RTC.LiveKit.APISecret)}}
	for _, t := range c.RTC.Transports {
		v, err := json.Marshal(t, json.Deterministic(true))
		if err != nil {
			return out, err
		}
		out.Transports = append(out.Transports, jsontext.Value(v))
	}
	return out, nil
}
