package api_test

import (
	"maps"
	"net/http"
	"strings"

	"maunium.net/go/mautrix/id"
)

// pages are operations that browsers are led to: they answer with redirects and pages, which the tests of their package
// look at.
var pages = map[string]bool{"redirectToSSO": true, "redirectToIdP": true}

// seeds has a right request for every operation that is served, by operation id.
var seeds = map[string]seed{
	// the server
	"getWellknownPolicy": {status: http.StatusNotFound}, // there is none
	"getVersions":        {}, "getCapabilities": {}, "getWellknown": {}, "getLoginFlows": {},
	"getWellknownSupport": {status: http.StatusNotFound}, // none is configured
	"getTurnServer":       {}, "getProtocols": {},

	// accounts and devices
	"login": {body: `{"type":"m.login.password","identifier":{"type":"m.id.user","user":"{alice}"},"password":"{password}",
		"device_id":"WALK","initial_device_display_name":"walk","refresh_token":true}`, who: "nobody"},
	"generateLoginToken":        {body: `{` + uia + `}`, needs: withUIA, once: true},
	"refresh":                   {body: `{"refresh_token":"{refresh}"}`, who: "nobody", needs: withRefreshToken, once: true},
	"logout":                    {once: true},
	"logout_all":                {once: true},
	"register":                  {body: `{"username":"new.{name}","password":"walk walk walk","auth":{"type":"m.login.dummy"},"device_id":"WALK","inhibit_login":false}`, who: "nobody"},
	"checkUsernameAvailability": {query: []string{"username=free.{name}"}, who: "nobody"},
	"registrationTokenValidity": {query: []string{"token=walk"}, who: "nobody"},
	"getTokenOwner":             {},
	"getAccount3PIDs":           {},
	"changePassword":            {body: `{"new_password":"walk walk walk","logout_devices":true,` + uia + `}`, needs: withUIA, once: true},
	"deactivateAccount":         {body: `{"erase":false,` + uia + `}`, needs: withUIA, once: true},
	"getDevices":                {},
	"getDevice":                 {},
	"updateDevice":              {body: `{"display_name":"walk"}`},
	"deleteDevice":              {body: `{` + uia + `}`, needs: withSecondDevice, once: true},
	"deleteDevices":             {body: `{"devices":["{device}"],` + uia + `}`, needs: withSecondDevice, once: true},

	// administrators
	"getWhoIs":            {path: map[string]string{"userId": "{alice}"}},
	"getAdminLockUser":    {who: "admin"},
	"setAdminLockUser":    {who: "admin", body: `{"locked":true}`},
	"getAdminSuspendUser": {who: "admin"},
	"setAdminSuspendUser": {who: "admin", body: `{"suspended":true}`},

	// addresses outside of Matrix
	"requestTokenToRegisterEmail":       {who: "nobody", body: emailBody},
	"requestTokenTo3PIDEmail":           {body: emailBody},
	"requestTokenToResetPasswordEmail":  {body: emailBody},
	"requestTokenToRegisterMSISDN":      {who: "nobody", body: phoneBody, status: http.StatusBadRequest}, // no text messages are sent
	"requestTokenTo3PIDMSISDN":          {body: phoneBody, status: http.StatusBadRequest},
	"requestTokenToResetPasswordMSISDN": {body: phoneBody, status: http.StatusBadRequest},
	"post3PIDs": {body: `{"three_pid_creds":{"client_secret":"walk","sid":"walk","id_server":"id.example.org","id_access_token":"walk"}}`,
		status: http.StatusForbidden}, // no identity server is trusted
	"add3PID":               {body: `{"client_secret":"walk","sid":"walk",` + passwordOnly + `}`, status: http.StatusBadRequest}, // not proved
	"bind3PID":              {body: `{"client_secret":"walk","sid":"walk","id_server":"id.example.org","id_access_token":"walk"}`, status: http.StatusBadRequest},
	"delete3pidFromAccount": {body: `{"medium":"email","address":"{name}@example.org","id_server":"id.example.org"}`},
	"unbind3pidFromAccount": {body: `{"medium":"email","address":"{name}@example.org","id_server":"id.example.org"}`},

	// bridges: there are none
	"getProtocolMetadata":     {path: map[string]string{"protocol": "irc"}, status: http.StatusNotFound},
	"queryLocationByProtocol": {path: map[string]string{"protocol": "irc"}, status: http.StatusNotFound},
	"queryUserByProtocol":     {path: map[string]string{"protocol": "irc"}, status: http.StatusNotFound},
	"queryLocationByAlias":    {query: []string{"alias=%23walk:test"}, status: http.StatusNotFound},
	"queryUserByID":           {query: []string{"userid=@walk:test"}, status: http.StatusNotFound},

	// application services
	"pingAppservice": {path: map[string]string{"appserviceId": "walk"}, body: `{"transaction_id":"walk"}`, who: "service"},
	"updateAppserviceRoomDirectoryVisibility": {path: map[string]string{"networkId": "irc"}, body: `{"visibility":"public"}`, who: "service", needs: withService},

	"getAuthMetadata": {who: "nobody"},

	"search": {body: `{"search_categories":{"room_events":{"search_term":"hello","keys":["content.body"],"order_by":"recent",
		"event_context":{"before_limit":1,"after_limit":1,"include_profile":true},"include_state":true,"groupings":{"group_by":[{"key":"room_id"}]}}}}`},

	"requestOpenIdToken": {},
	"getMutualRooms":     {query: []string{"user_id={bob}"}},

	// what a user keeps
	"getUserProfile": {who: "nobody"},
	"getProfileField": {who: "nobody", needs: func(w *walk, f *fixture) {
		w.must(f.alice, "PUT", `{"displayname":"A"}`, "/v3/profile/%s/displayname", f.alice.UserID)
	}},
	"setProfileField":       {body: `{"displayname":"walk"}`},
	"deleteProfileField":    {},
	"searchUserDirectory":   {body: `{"search_term":"walk","limit":5}`},
	"defineFilter":          {body: `{"event_fields":["content"],"event_format":"client","presence":{"types":[]},"account_data":{},"room":{"rooms":[],"timeline":{"limit":1},"state":{},"ephemeral":{},"account_data":{}}}`},
	"getFilter":             {needs: withFilter},
	"getAccountData":        {needs: withAccountData},
	"setAccountData":        {body: `{"a":1}`},
	"getAccountDataPerRoom": {needs: withAccountData},
	"setAccountDataPerRoom": {body: `{"a":1}`},
	"getRoomTags":           {},
	"setRoomTag":            {body: `{"order":0.5}`},
	"deleteRoomTag":         {needs: withTag},
	"getPresence":           {},
	"setPresence":           {body: `{"presence":"online","status_msg":"walk"}`},
	"getNotifications":      {},
	"getPushers":            {},
	"postPusher":            {body: `{"kind":"http","app_id":"walk","pushkey":"walk","app_display_name":"w","device_display_name":"w","lang":"en","append":true,"data":{"url":"https://push.example.org/_matrix/push/v1/notify","format":"event_id_only"}}`},
	"getPushRules":          {},
	"getPushRulesGlobal":    {},
	"getPushRule":           {needs: withRule},
	"setPushRule":           {body: `{"actions":["notify"],"conditions":[{"kind":"event_match","key":"content.body","pattern":"walk"}]}`},
	"deletePushRule":        {needs: withRule, once: true},
	"getPushRuleActions":    {needs: withRule},
	"setPushRuleActions":    {needs: withRule, body: `{"actions":["notify"]}`},
	"isPushRuleEnabled":     {needs: withRule},
	"setPushRuleEnabled":    {needs: withRule, body: `{"enabled":true}`},
	"sync":                  {query: []string{"timeout=0"}},
	"getEvents":             {query: []string{"timeout=0", "from={from}"}, needs: withEvents},
	"peekEvents":            {query: []string{"timeout=0", "from={from}", "room_id={room}"}, needs: withEvents},
	"roomInitialSync":       {},
	"initialSync":           {},
	"getOneEvent":           {},
	"postReceipt":           {body: `{"thread_id":"main"}`},
	"setReadMarker":         {body: `{"m.fully_read":"{event}","m.read":"{event}","m.read.private":"{event}"}`},
	"setTyping":             {body: `{"typing":true,"timeout":1000}`},
	"sendToDevice":          {body: `{"messages":{"{bob}":{"*":{"a":1}}}}`},

	// keys
	"uploadKeys":                   {body: `{"device_keys":{deviceKeys},"one_time_keys":{"signed_curve25519:A":{oneTime}},"fallback_keys":{"signed_curve25519:F":{fallback}}}`, needs: withSignedDevice},
	"queryKeys":                    {body: `{"device_keys":{"{alice}":[]},"timeout":1000}`, needs: withUploadedDevice},
	"claimKeys":                    {body: `{"one_time_keys":{"{alice}":{"{device}":"signed_curve25519"}},"timeout":1000}`, needs: withUploadedDevice},
	"getKeysChanges":               {query: []string{"from={since}", "to={since}"}, needs: withSyncToken},
	"uploadCrossSigningKeys":       {body: `{"master_key":{master},"self_signing_key":{self_signing},"user_signing_key":{user_signing}}`, needs: withCrossSigning},
	"uploadCrossSigningSignatures": {body: `{"{alice}":{"{device}":{signed}}}`, needs: withSignature},
	"postRoomKeysVersion":          {body: `{` + backupData + `}`},
	"getRoomKeysVersionCurrent":    {needs: withBackup},
	"getRoomKeysVersion":           {needs: withBackup},
	"putRoomKeysVersion":           {body: `{"version":"{backup}",` + backupData + `}`, needs: withBackup},
	"deleteRoomKeysVersion":        {needs: withBackup},
	"putRoomKeys":                  {body: `{"rooms":{"{room}":{"sessions":{"session":` + backupKey + `}}}}`, query: []string{"version={backup}"}, needs: withBackup},
	"putRoomKeysByRoomId":          {body: `{"sessions":{"session":` + backupKey + `}}`, query: []string{"version={backup}"}, needs: withBackup},
	"putRoomKeyBySessionId":        {body: backupKey, query: []string{"version={backup}"}, needs: withBackup},
	"getRoomKeys":                  {query: []string{"version={backup}"}, needs: withBackup},
	"getRoomKeysByRoomId":          {query: []string{"version={backup}"}, needs: withBackup},
	"getRoomKeyBySessionId":        {query: []string{"version={backup}"}, needs: withBackup},
	"deleteRoomKeys":               {query: []string{"version={backup}"}, needs: withBackup},
	"deleteRoomKeysByRoomId":       {query: []string{"version={backup}"}, needs: withBackup},
	"deleteRoomKeyBySessionId":     {query: []string{"version={backup}"}, needs: withBackup},

	// rooms
	"createRoom": {body: `{"preset":"private_chat","visibility":"private","name":"w","topic":"w","invite":["{bob}"],"is_direct":false,"room_version":"12",
		"creation_content":{"m.federate":false},"power_level_content_override":{"events":{"org.example.walk":50}},
		"initial_state":[{"type":"org.example.walk","state_key":"","content":{}}]}`},
	"upgradeRoom":                  {body: `{"new_version":"12","additional_creators":["{bob}"]}`, once: true},
	"getJoinedRooms":               {},
	"joinRoom":                     {path: map[string]string{"roomIdOrAlias": "{public}"}, body: `{"reason":"walk"}`, needs: withPublicRoom},
	"joinRoomById":                 {path: map[string]string{"roomId": "{public}"}, body: `{"reason":"walk"}`, needs: withPublicRoom},
	"knockRoom":                    {path: map[string]string{"roomIdOrAlias": "{knockable}"}, body: `{"reason":"walk"}`, needs: withKnocking, once: true},
	"inviteUser":                   {body: `{"user_id":"{eve}","reason":"walk"}`},
	"inviteBy3PID":                 {body: `{"id_server":"id.example.org","id_access_token":"walk","medium":"email","address":"walk@example.org"}`, status: http.StatusBadRequest},
	"leaveRoom":                    {body: `{"reason":"walk"}`, who: "bob", once: true},
	"forgetRoom":                   {who: "bob", once: true, needs: func(w *walk, f *fixture) { f.bob.Leave(id.RoomID(f.values["room"])) }},
	"kick":                         {body: `{"user_id":"{bob}","reason":"walk"}`, once: true},
	"ban":                          {body: `{"user_id":"{bob}","reason":"walk"}`, once: true},
	"unban":                        {body: `{"user_id":"{bob}","reason":"walk"}`, once: true, needs: withBan},
	"getRoomState":                 {},
	"getRoomStateWithKey":          {path: map[string]string{"eventType": "m.room.create"}},
	"setRoomStateWithKey":          {path: map[string]string{"eventType": "m.room.name"}, body: `{"name":"walk"}`},
	"getMembersByRoom":             {},
	"getJoinedMembersByRoom":       {},
	"sendMessage":                  {body: `{"msgtype":"m.text","body":"walk"}`},
	"redactEvent":                  {body: `{"reason":"walk"}`},
	"getRoomEvents":                {query: []string{"dir=b", "limit=5"}},
	"getEventContext":              {},
	"getOneRoomEvent":              {},
	"getEventByTimestamp":          {query: []string{"ts=1", "dir=f"}},
	"getRelatingEvents":            {needs: withThread},
	"getRelatingEventsWithRelType": {needs: withThread},
	"getRelatingEventsWithRelTypeAndEventType": {needs: withThread},
	"getThreadRoots":               {needs: withThread},
	"getRoomIdByAlias":             {who: "nobody", needs: withAlias},
	"setRoomAlias":                 {body: `{"room_id":"{room}"}`, once: true},
	"deleteRoomAlias":              {needs: withAlias, once: true},
	"getLocalAliases":              {},
	"getPublicRooms":               {},
	"queryPublicRooms":             {body: `{"limit":5,"filter":{"generic_search_term":"walk","room_types":[null]},"include_all_networks":false}`},
	"getRoomVisibilityOnDirectory": {who: "nobody"},
	"setRoomVisibilityOnDirectory": {body: `{"visibility":"private"}`},
	"getRoomSummary":               {},
	"getSpaceHierarchy":            {},
	"reportRoom":                   {body: `{"reason":"walk"}`},
	"reportEvent":                  {body: `{"reason":"walk","score":-1}`},
	"reportUser":                   {body: `{"reason":"walk"}`, path: map[string]string{"userId": "{bob}"}},

	// media
	"uploadContent":                {body: "walk", query: []string{"filename=walk.txt"}},
	"uploadContentToMXC":           {body: "walk", query: []string{"filename=walk.txt"}, needs: withReservedMedia, once: true},
	"createContent":                {},
	"getConfigAuthed":              {},
	"getConfig":                    {},
	"getContentAuthed":             {needs: withMedia},
	"getContentOverrideNameAuthed": {needs: withMedia},
	"getContentThumbnailAuthed":    {needs: withMedia, query: []string{"width=32", "height=32", "method=crop"}},
	"getUrlPreviewAuthed":          {query: []string{"url={page}"}, needs: withPage},
	"getContent":                   {status: http.StatusNotFound, who: "nobody", needs: withMedia}, // what is uploaded now is there only with a token
	"getContentOverrideName":       {status: http.StatusNotFound, who: "nobody", needs: withMedia},
	"getContentThumbnail":          {status: http.StatusNotFound, who: "nobody", needs: withMedia, query: []string{"width=32", "height=32"}},
	"getUrlPreview":                {query: []string{"url={page}"}, needs: withPage},
}

const (
	emailBody    = `{"client_secret":"walk","email":"{name}@example.org","send_attempt":1,"next_link":"https://example.org/","id_server":"id.example.org","id_access_token":"walk"}`
	phoneBody    = `{"client_secret":"walk","country":"GB","phone_number":"07700900001","send_attempt":1}`
	passwordOnly = `"auth":{"type":"m.login.password","identifier":{"type":"m.id.user","user":"{alice}"},"password":"{password}"}`
)

// exception is what an operation may answer to a case instead of what every other answers.
type exception struct {
	statuses []int
	codes    []string
	reason   string
}

var (
	granted = []int{200}
	refused = []int{400}
)

// exceptions by operation and case, or by operation and the field or parameter of all its cases. Each has its reason.
var exceptions = merged(map[string]exception{
	"getRoomSummary no token":                             {[]int{404}, []string{"M_NOT_FOUND"}, "a token is optional"},
	"getRoomVisibilityOnDirectory roomId: someone else's": {granted, nil, "anybody may ask"},
	"getUserProfile userId: someone else's":               {granted, nil, "profiles are for everybody"},
	"reportRoom roomId: someone else's":                   {granted, nil, "the reporter need not be in the room"},
	"reportRoom body: absent":                             {refused, []string{"M_MISSING_PARAM"}, "an absent body counts as {}"},
	"reportUser body: absent":                             {refused, []string{"M_MISSING_PARAM"}, "an absent body counts as {}"},
	"setRoomAlias roomAlias: unknown":                     {granted, nil, "it is made"},
	"setPushRule ruleId: unknown":                         {granted, nil, "it is made"},
	"createRoom invite_3pid.*":                            {refused, []string{"M_SERVER_NOT_TRUSTED", "M_BAD_JSON"}, "there are no identity servers, whatever is said to them"},
	"changePassword body: absent":                         {[]int{401}, []string{""}, "how clients learn the flows"},
	"changePassword body: {}":                             {[]int{401}, []string{""}, "how clients learn the flows"},
	"putRoomKeys body: 5 MiB":                             {granted, nil, "clients upload keys in bulk: up to 16 MiB"},
	"putRoomKeysByRoomId body: 5 MiB":                     {granted, nil, "as above"},
	"postReceipt thread_id":                               {refused, []string{"M_INVALID_PARAM"}, "the specification names this errcode for a thread_id that is no string"},
	"getRoomStateWithKey stateKey: empty":                 {granted, nil, "state keys may be empty"},
	"setRoomStateWithKey stateKey: empty":                 {granted, nil, "state keys may be empty"},
	"getRoomTags roomId: someone else's":                  {granted, nil, "what a user keeps with a room does not hang on being in it"},
	"setRoomTag roomId: someone else's":                   {granted, nil, "as above"},
	"deleteRoomTag roomId: someone else's":                {granted, nil, "as above"},
	"setAccountDataPerRoom roomId: someone else's":        {granted, nil, "as above"},
	"peekEvents ?room_id: missing":                        {granted, nil, "then it is getEvents, of the same path"},
},
	each(exception{granted, nil, "an administrator may"}, "getAdminLockUser userId", "someone else's"),
	each(exception{granted, nil, "an administrator may"}, "setAdminLockUser userId", "someone else's"),
	each(exception{granted, nil, "an administrator may"}, "getAdminSuspendUser userId", "someone else's"),
	each(exception{granted, nil, "an administrator may"}, "setAdminSuspendUser userId", "someone else's"),
	phoneExceptions("requestTokenToRegisterMSISDN"),
	phoneExceptions("requestTokenTo3PIDMSISDN"),
	phoneExceptions("requestTokenToResetPasswordMSISDN"),
	each(exception{granted, nil, "whether a user exists is not told"}, "reportUser userId", "unknown", "someone else's"),
	each(exception{refused, []string{"M_SERVER_NOT_TRUSTED", "M_BAD_JSON", "M_MISSING_PARAM"}, "there are no identity servers"},
		"inviteBy3PID", "address", "id_access_token", "id_server", "medium"),
	each(exception{[]int{400, 403}, []string{"M_BAD_JSON", "M_MISSING_PARAM", "M_FORBIDDEN"}, "whom the invitation is for is looked at first"},
		"joinRoom", "third_party_signed"),
	each(exception{[]int{400, 403}, []string{"M_BAD_JSON", "M_MISSING_PARAM", "M_FORBIDDEN"}, "as above"}, "joinRoomById", "third_party_signed"),
	each(exception{granted, nil, "no keys are kept under it: the specification wants an empty object"},
		"getRoomKeysByRoomId roomId", "unknown", "malformed", "someone else's", "long", "odd"),
	each(exception{granted, nil, "what is not there is deleted"},
		"deleteRoomKeysByRoomId roomId", "unknown", "malformed", "someone else's", "long", "odd"),
	each(exception{granted, nil, "what is not there is deleted"},
		"deleteRoomKeyBySessionId roomId", "unknown", "malformed", "someone else's", "long", "odd"),
	each(exception{granted, nil, "the server cannot know in which rooms a user once was"},
		"putRoomKeysByRoomId roomId", "unknown", "someone else's", "odd"),
	each(exception{granted, nil, "as above"}, "putRoomKeyBySessionId roomId", "unknown", "someone else's", "odd"),
)

// phoneExceptions are for the operations that would send a text message, which this server never does.
func phoneExceptions(operation string) map[string]exception {
	e := exception{refused, []string{"M_THREEPID_MEDIUM_NOT_SUPPORTED"}, "no text message is sent, whatever is missing"}
	out := map[string]exception{operation + " body: {}": e}
	for _, field := range []string{"client_secret", "country", "phone_number", "send_attempt"} {
		maps.Copy(out, each(e, operation+" "+field, "missing", "null"))
	}
	return out
}

// each gives one exception to several cases of a parameter, or fields of an operation.
func each(e exception, of string, names ...string) map[string]exception {
	out := map[string]exception{}
	for _, name := range names {
		separator := ": "
		if !strings.Contains(of, " ") {
			separator = " "
		}
		out[of+separator+name] = e
	}
	return out
}

func merged(all ...map[string]exception) map[string]exception {
	out := map[string]exception{}
	for _, m := range all {
		maps.Copy(out, m)
	}
	return out
}
