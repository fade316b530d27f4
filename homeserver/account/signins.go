package account

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// noteSignIn stores how a device was signed in and writes the entry of the audit log.
func (a *Accounts) noteSignIn(ctx context.Context, tx *store.Tx, in SignIn, session Session, isNew bool) (store.SignInFacts, error) {
	from := audit.SourceOf(ctx)
	facts := store.SignInFacts{Time: session.Created, Way: in.Way, AMR: in.AMR, IP: in.IP, Agent: in.Agent, OAuthClient: in.OAuthClient}
	if facts.IP == "" {
		facts.IP = from.IP
	}
	if facts.Agent == "" {
		facts.Agent = from.Agent
	}
	facts.Agent = cutAgent(facts.Agent)
	if err := tx.SetSignIn(session.User, session.Device, facts); err != nil {
		return facts, err
	}
	e := audit.Entry{
		Source: audit.Source{Actor: session.User, Device: session.Device, Session: audit.SessionName(session.Hash.ID()), IP: facts.IP, Agent: facts.Agent},
		Action: "signin." + wayKind(in.Way), Target: string(session.User),
		Details: map[string]any{"way": in.Way, "new_device": isNew},
	}
	if from.Actor != "" && from.Actor != session.User { // an administrator got a session of somebody
		e.Actor, e.Device, e.Session, e.Kind = from.Actor, from.Device, from.Session, from.Kind
		e.Details["device"] = session.Device
	}
	if len(in.AMR) > 0 {
		e.Details["amr"] = in.AMR
	}
	if in.OAuthClient != "" {
		e.Details["oauth_client"] = in.OAuthClient
	}
	return facts, audit.Append(ctx, tx, e)
}

// wayKind is a way to sign in without what names a provider.
func wayKind(way string) string {
	kind, _, _ := strings.Cut(way, ":")
	if kind == "" {
		return "other"
	}
	return kind
}

// cutAgent bounds a User-Agent to what is kept.
func cutAgent(agent string) string {
	if len(agent) > maxAgent {
		agent = agent[:maxAgent]
	}
	return strings.ToValidUTF8(strings.ReplaceAll(agent, "\x00", ""), "")
}

// refuseSignIn notes in the audit log that somebody was not let in, and returns the error that says so.
func (a *Accounts) refuseSignIn(ctx context.Context, user id.UserID, way string, err error) error {
	e := mxerr.As(err)
	if e == nil || e.Status >= 500 {
		return err
	}
	noted := a.Audit.Refusal(ctx, audit.Entry{Action: "signin.refused", Target: string(user), Reason: e.Code, Details: map[string]any{"way": way}})
	if noted != nil {
		return errors.Join(errors.New("the refusal of a sign-in cannot be written into the audit log"), noted)
	}
	return err
}

// RefuseSignIn notes in the audit log that somebody who was to sign in as user ("": nobody of this server) was not let in,
// for features that check proofs of their own. It returns err, or why it cannot be noted.
func (a *Accounts) RefuseSignIn(ctx context.Context, user id.UserID, way string, err error) error {
	return a.refuseSignIn(ctx, user, way, err)
}

const maxNamedDevices = 50

// auditEnding writes that sessions ended.
func auditEnding(ctx context.Context, tx *store.Tx, user id.UserID, ending Ending, ended []id.DeviceID, deleted int, browsers int64) error {
	if len(ended) == 0 && browsers == 0 {
		return nil
	}
	reason := ending.Reason
	if reason == "" {
		reason = "signed_out"
	}
	return audit.Append(ctx, tx, audit.Entry{
		Action: "session.ended", Target: string(user), Reason: reason,
		Details: map[string]any{"devices": ended[:min(len(ended), maxNamedDevices)], "sessions": len(ended), "devices_deleted": deleted, "browsers": browsers, "soft": ending.Soft},
	})
}

// MailNewDevice is the kind of a mail that tells of a sign-in on a new device.
const MailNewDevice = "new_device"

// tellOfDevice queues a mail to the addresses of an account that has other devices; true if there is one. The clients that
// the user has signed in learn of the device by the device list and warn by themselves.
func (a *Accounts) tellOfDevice(tx *store.Tx, user id.UserID, device id.DeviceID, name *string, facts store.SignInFacts) (bool, error) {
	if !a.Config.Email.Enabled || wayKind(facts.Way) == WayRegistration {
		return false, nil
	}
	devices, err := tx.Devices(user)
	if err != nil || len(devices) < 2 {
		return false, err
	}
	addresses, err := tx.Threepids(user)
	if err != nil {
		return false, err
	}
	told := false
	for _, t := range addresses {
		if t.Medium != store.MediumEmail {
			continue
		}
		data := MailData{User: user, Facts: []string{time.UnixMilli(facts.Time).UTC().Format("2006-01-02 15:04 UTC"), string(device)}}
		for _, fact := range []string{deviceName(name), facts.IP, facts.Agent} {
			if fact != "" {
				data.Facts = append(data.Facts, fact)
			}
		}
		b, err := json.Marshal(data)
		if err != nil {
			return false, err
		}
		lang := a.Config.Email.Language
		if err := tx.InsertMail(store.Mail{ID: randomLetters(32), To: t.Address, Kind: MailNewDevice, Lang: lang, Data: b, Created: facts.Time}); err != nil {
			return false, err
		}
		told = true
	}
	return told, nil
}

func deviceName(name *string) string {
	if name = cutName(name); name == nil {
		return ""
	}
	return *name
}

// SessionInfo is a session as its user and administrators see it.
type SessionInfo struct {
	Device      id.DeviceID
	DisplayName string
	SignedIn    time.Time
	Way         string // see SignIn; "" where it was not noted
	AMR         []string
	IP, Agent   string // at sign-in
	OAuthClient string
	LastSeen    time.Time // zero: not yet
	LastIP      string
	LastAgent   string
	// Ended says that the session was ended softly: its user has to sign in again on this device.
	Ended bool
	// Until is when the session ends at the latest; zero: there is no limit.
	Until time.Time
}

// Sessions lists a user's sessions, the one that was seen last first.
func (a *Accounts) Sessions(ctx context.Context, user id.UserID) ([]SessionInfo, error) {
	var rows []store.DeviceSession
	err := a.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		rows, err = tx.DeviceSessions(user)
		return err
	})
	if err != nil {
		return nil, err
	}
	out := make([]SessionInfo, len(rows))
	for i := range rows {
		out[i] = a.sessionInfo(&rows[i])
	}
	sortSessions(out)
	return out, nil
}

func (a *Accounts) sessionInfo(s *store.DeviceSession) SessionInfo {
	out := SessionInfo{
		Device: s.ID, DisplayName: deviceName(s.DisplayName), SignedIn: time.UnixMilli(s.SignIn.Time), Way: s.SignIn.Way, AMR: s.SignIn.AMR,
		IP: s.SignIn.IP, Agent: s.SignIn.Agent, OAuthClient: s.SignIn.OAuthClient, LastIP: s.LastIP, LastAgent: s.LastAgent, Ended: s.Ended,
	}
	if s.SignIn.Time == 0 {
		out.SignedIn = time.UnixMilli(s.Created)
	}
	if s.LastSeen != 0 {
		out.LastSeen = time.UnixMilli(s.LastSeen)
	}
	if limit := a.Config.Sessions.AbsoluteLimit; limit > 0 {
		out.Until = out.SignedIn.Add(limit)
	}
	if idle := a.Config.Sessions.IdleLimit; idle > 0 {
		last := out.SignedIn
		if out.LastSeen.After(last) {
			last = out.LastSeen
		}
		if until := last.Add(idle); out.Until.IsZero() || until.Before(out.Until) {
			out.Until = until
		}
	}
	return out
}
