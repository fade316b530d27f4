// Command bridge is a bridge to a network that exists only in its own process: what a mautrix bridge does, by the framework
// that those are made with (bridgev2 of mautrix-go), encryption included. Tests speak for the other side over HTTP.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"go.mau.fi/util/configupgrade"
	"go.mau.fi/util/ptr"
	"maunium.net/go/mautrix/bridgev2"
	"maunium.net/go/mautrix/bridgev2/database"
	"maunium.net/go/mautrix/bridgev2/matrix/mxmain"
	"maunium.net/go/mautrix/bridgev2/networkid"
	"maunium.net/go/mautrix/bridgev2/simplevent"
	"maunium.net/go/mautrix/bridgev2/status"
	"maunium.net/go/mautrix/event"
)

func main() {
	m := mxmain.BridgeMain{Name: "testbridge", Description: "a bridge for tests", URL: "https://github.com/moothall/moothall", Version: "0.1.0", Connector: &network{}}
	m.InitVersion("", "", "")
	m.Run()
}

// line is something that was said in a chat of the network.
type line struct {
	Chat string `json:"chat"`
	From string `json:"from"`
	Text string `json:"text"`
}

// network is the network and the way to it.
type network struct {
	bridge *bridgev2.Bridge
	config struct {
		Listen string `yaml:"listen"`
	}

	mu    sync.Mutex
	login *bridgev2.UserLogin
	heard []line
	last  int
}

var _ bridgev2.NetworkConnector = (*network)(nil)

func (n *network) Init(b *bridgev2.Bridge) { n.bridge = b }

// Start opens the other side: POST /say says something there, GET /heard lists what was said here.
func (n *network) Start(context.Context) error {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /say", func(w http.ResponseWriter, r *http.Request) {
		var l line
		if err := json.NewDecoder(r.Body).Decode(&l); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		n.mu.Lock()
		login := n.login
		n.last++
		msg := strconv.Itoa(n.last)
		n.mu.Unlock()
		if login == nil {
			http.Error(w, "nobody is logged in", http.StatusConflict)
			return
		}
		login.QueueRemoteEvent(&simplevent.Message[line]{
			EventMeta: simplevent.EventMeta{
				Type: bridgev2.RemoteEventMessage, PortalKey: networkid.PortalKey{ID: networkid.PortalID(l.Chat), Receiver: login.ID},
				Sender: bridgev2.EventSender{Sender: networkid.UserID(l.From)}, CreatePortal: true, Timestamp: time.Now(),
			},
			Data: l, ID: networkid.MessageID("remote-" + msg),
			ConvertMessageFunc: func(_ context.Context, _ *bridgev2.Portal, _ bridgev2.MatrixAPI, l line) (*bridgev2.ConvertedMessage, error) {
				return &bridgev2.ConvertedMessage{Parts: []*bridgev2.ConvertedMessagePart{{
					Type: event.EventMessage, Content: &event.MessageEventContent{MsgType: event.MsgText, Body: l.Text},
				}}}, nil
			},
		})
	})
	mux.HandleFunc("GET /heard", func(w http.ResponseWriter, _ *http.Request) {
		n.mu.Lock()
		defer n.mu.Unlock()
		_ = json.NewEncoder(w).Encode(n.heard) // the test sees that nothing came
	})
	l, err := net.Listen("tcp", n.config.Listen)
	if err != nil {
		return err
	}
	go func() { _ = http.Serve(l, mux) }() // to the end of the process
	return nil
}

func (n *network) GetName() bridgev2.BridgeName {
	return bridgev2.BridgeName{
		DisplayName: "Testnet", NetworkURL: "https://example.org", NetworkID: "testnet", BeeperBridgeType: "example.org/testnet", DefaultPort: 29300,
	}
}

func (n *network) GetDBMetaTypes() database.MetaTypes { return database.MetaTypes{} }

func (n *network) GetCapabilities() *bridgev2.NetworkGeneralCapabilities {
	return &bridgev2.NetworkGeneralCapabilities{}
}

func (n *network) GetConfig() (example string, data any, upgrader configupgrade.Upgrader) {
	return "listen: 127.0.0.1:0\n", &n.config, configupgrade.SimpleUpgrader(func(h configupgrade.Helper) { h.Copy(configupgrade.Str, "listen") })
}

func (n *network) GetBridgeInfoVersion() (info, capabilities int) { return 1, 1 }

func (n *network) LoadUserLogin(_ context.Context, login *bridgev2.UserLogin) error {
	login.Client = &account{n: n, login: login}
	n.mu.Lock()
	n.login = login
	n.mu.Unlock()
	return nil
}

func (n *network) GetLoginFlows() []bridgev2.LoginFlow {
	return []bridgev2.LoginFlow{{Name: "Open door", Description: "asks for nothing", ID: "open"}}
}

func (n *network) CreateLogin(_ context.Context, user *bridgev2.User, flowID string) (bridgev2.LoginProcess, error) {
	if flowID != "open" {
		return nil, fmt.Errorf("unknown flow %q", flowID)
	}
	return &openDoor{user}, nil
}

// openDoor logs everybody in.
type openDoor struct{ user *bridgev2.User }

func (o *openDoor) Start(ctx context.Context) (*bridgev2.LoginStep, error) {
	me := networkid.UserLoginID("me-" + o.user.MXID.Localpart())
	login, err := o.user.NewLogin(ctx, &database.UserLogin{ID: me, RemoteName: string(me)}, nil)
	if err != nil {
		return nil, err
	}
	login.Client.Connect(ctx)
	return &bridgev2.LoginStep{
		Type: bridgev2.LoginStepTypeComplete, StepID: "org.example.testnet.complete", Instructions: "Welcome to Testnet",
		CompleteParams: &bridgev2.LoginCompleteParams{UserLoginID: me, UserLogin: login},
	}, nil
}

func (o *openDoor) Cancel() {}

// account is somebody's account on the network.
type account struct {
	n     *network
	login *bridgev2.UserLogin
}

var _ bridgev2.NetworkAPI = (*account)(nil)

func (a *account) Connect(context.Context) {
	a.login.BridgeState.Send(status.BridgeState{StateEvent: status.StateConnected})
}
func (a *account) Disconnect()                  {}
func (a *account) IsLoggedIn() bool             { return true }
func (a *account) LogoutRemote(context.Context) {}

func (a *account) IsThisUser(_ context.Context, user networkid.UserID) bool {
	return string(user) == string(a.login.ID)
}

func (a *account) GetChatInfo(_ context.Context, portal *bridgev2.Portal) (*bridgev2.ChatInfo, error) {
	me := networkid.UserID(a.login.ID)
	return &bridgev2.ChatInfo{
		Name: ptr.Ptr("Chat " + string(portal.ID)),
		Members: &bridgev2.ChatMemberList{IsFull: true, MemberMap: bridgev2.ChatMemberMap{
			me:    {EventSender: bridgev2.EventSender{IsFromMe: true, SenderLogin: a.login.ID, Sender: me}, Membership: event.MembershipJoin},
			"bob": {EventSender: bridgev2.EventSender{Sender: "bob"}, Membership: event.MembershipJoin},
		}},
	}, nil
}

func (a *account) GetUserInfo(_ context.Context, ghost *bridgev2.Ghost) (*bridgev2.UserInfo, error) {
	return &bridgev2.UserInfo{Name: ptr.Ptr(string(ghost.ID) + " (Testnet)")}, nil
}

func (a *account) GetCapabilities(context.Context, *bridgev2.Portal) *event.RoomFeatures {
	return &event.RoomFeatures{MaxTextLength: 65536}
}

func (a *account) HandleMatrixMessage(_ context.Context, msg *bridgev2.MatrixMessage) (*bridgev2.MatrixMessageResponse, error) {
	a.n.mu.Lock()
	defer a.n.mu.Unlock()
	a.n.last++
	a.n.heard = append(a.n.heard, line{Chat: string(msg.Portal.ID), From: msg.Event.Sender.String(), Text: msg.Content.Body})
	return &bridgev2.MatrixMessageResponse{DB: &database.Message{
		ID: networkid.MessageID("local-" + strconv.Itoa(a.n.last)), SenderID: networkid.UserID(a.login.ID), Timestamp: time.Now(),
	}}, nil
}
