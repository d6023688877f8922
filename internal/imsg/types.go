package imsg

// Type is the number of an imsg on the wire. Numbers are never reused.
type Type uint16

// The types, one for each imsg.
const (
	TypeConfigure      Type = 1
	TypePeerLink       Type = 2
	TypeListenSocket   Type = 3
	TypeSwitches       Type = 4
	TypeShutdown       Type = 5
	TypeReady          Type = 6
	TypeFatal          Type = 7
	TypeViolation      Type = 8
	TypeUserQuery      Type = 9
	TypeUserInfo       Type = 10
	TypeForwardOpen    Type = 11
	TypeForwardFile    Type = 12
	TypeSystemAuth     Type = 13
	TypeAuthResult     Type = 14
	TypeDeliverStart   Type = 15
	TypeDeliverStarted Type = 16
	TypeReload         Type = 17
	TypeSwitch         Type = 18
	TypeStatusGet      Type = 19
	TypeDone           Type = 20
	TypeTableQuery     Type = 21
	TypeTableAnswer    Type = 22
	TypeSign           Type = 23
	TypeSignature      Type = 24
	TypeClientLookup   Type = 25
	TypeClientName     Type = 26
	TypeRcptCheck      Type = 27
	TypeRcptAnswer     Type = 28
	TypeRcptMore       Type = 29
	TypeAuthCheck      Type = 30
	TypeSenderCheck    Type = 31
	TypeReserveIDs     Type = 32
	TypeReservedIDs    Type = 33
	TypeBodyCreate     Type = 34
	TypeBodyCreated    Type = 35
	TypeBodyAbort      Type = 36
	TypeCommitPart     Type = 37
	TypeCommit         Type = 38
	TypeCommitted      Type = 39
	TypeInject         Type = 40
	TypeInjected       Type = 41
	TypeScheduled      Type = 42
	TypeGone           Type = 43
	TypeLoadAll        Type = 44
	TypeAttempt        Type = 45
	TypeExpire         Type = 46
	TypeRemove         Type = 47
	TypeSuspend        Type = 48
	TypeDelayed        Type = 49
	TypeHeld           Type = 50
	TypeReleased       Type = 51
	TypeTransfer       Type = 52
	TypeBodyOpen       Type = 53
	TypeBody           Type = 54
	TypeResults        Type = 55
	TypeHold           Type = 56
	TypeRelease        Type = 57
	TypeDNSQuery       Type = 58
	TypeDNSAnswer      Type = 59
	TypeUserbaseQuery  Type = 60
	TypeDeliverRun     Type = 61
	TypeDeliverResult  Type = 62
	TypeStatsGet       Type = 63
	TypeStats          Type = 64
	TypeQueueList      Type = 65
	TypeQueueListing   Type = 66
	TypeEnvelopeGet    Type = 67
	TypeSchedGet       Type = 68
	TypeSchedStates    Type = 69
	TypeSchedCommand   Type = 70
	TypeCount          Type = 71
	TypeSessionOpen    Type = 72
	TypeSessionOpened  Type = 73
	TypeTableUpdate    Type = 74
	TypeShow           Type = 75
	TypeLines          Type = 76
	TypeRouteCommand   Type = 77
	TypeInflight       Type = 78
	TypeFilterOpen     Type = 79
	TypeFilterOpened   Type = 80
	TypeFilterAsk      Type = 81
	TypeFilterVerdict  Type = 82
	TypeFilterEvents   Type = 83
	TypeFilterLines    Type = 84
	TypeFilterLinesOut Type = 85
	TypeTableChecks    Type = 86
	TypeTableAnswers   Type = 87
	TypeFilterStart    Type = 88
	TypeFilterStarted  Type = 89
	TypeRetry          Type = 90
	TypeExplain        Type = 100
	TypeExplained      Type = 101
	TypePrepared       Type = 110
	TypeApply          Type = 111
	TypeApplied        Type = 112
	TypeTableOpen      Type = 113
	TypeTableOpened    Type = 114
	TypeGenerations    Type = 115
	TypeTableTally     Type = 970
	TypeTableTallies   Type = 971
	TypeTableCopy      Type = 980
	TypeTableCopied    Type = 981
	TypeTableStale     Type = 982
	TypeStoreCheck     Type = 150
	TypeStoreAnswer    Type = 151
	TypeReleases       Type = 920
)

// kinds makes an empty imsg of each type.
var kinds = [...]func() Msg{
	TypeConfigure:      func() Msg { return &Configure{} },
	TypePeerLink:       func() Msg { return &PeerLink{} },
	TypeListenSocket:   func() Msg { return &ListenSocket{} },
	TypeSwitches:       func() Msg { return &Switches{} },
	TypeShutdown:       func() Msg { return &Shutdown{} },
	TypeReady:          func() Msg { return &Ready{} },
	TypeFatal:          func() Msg { return &Fatal{} },
	TypeViolation:      func() Msg { return &Violation{} },
	TypeUserQuery:      func() Msg { return &UserQuery{} },
	TypeUserInfo:       func() Msg { return &UserInfo{} },
	TypeForwardOpen:    func() Msg { return &ForwardOpen{} },
	TypeForwardFile:    func() Msg { return &ForwardFile{} },
	TypeSystemAuth:     func() Msg { return &SystemAuth{} },
	TypeAuthResult:     func() Msg { return &AuthResult{} },
	TypeDeliverStart:   func() Msg { return &DeliverStart{} },
	TypeDeliverStarted: func() Msg { return &DeliverStarted{} },
	TypeReload:         func() Msg { return &Reload{} },
	TypeSwitch:         func() Msg { return &Switch{} },
	TypeStatusGet:      func() Msg { return &StatusGet{} },
	TypeDone:           func() Msg { return &Done{} },
	TypeTableQuery:     func() Msg { return &TableQuery{} },
	TypeTableAnswer:    func() Msg { return &TableAnswer{} },
	TypeSign:           func() Msg { return &Sign{} },
	TypeSignature:      func() Msg { return &Signature{} },
	TypeClientLookup:   func() Msg { return &ClientLookup{} },
	TypeClientName:     func() Msg { return &ClientName{} },
	TypeRcptCheck:      func() Msg { return &RcptCheck{} },
	TypeRcptAnswer:     func() Msg { return &RcptAnswer{} },
	TypeRcptMore:       func() Msg { return &RcptMore{} },
	TypeAuthCheck:      func() Msg { return &AuthCheck{} },
	TypeSenderCheck:    func() Msg { return &SenderCheck{} },
	TypeReserveIDs:     func() Msg { return &ReserveIDs{} },
	TypeReservedIDs:    func() Msg { return &ReservedIDs{} },
	TypeBodyCreate:     func() Msg { return &BodyCreate{} },
	TypeBodyCreated:    func() Msg { return &BodyCreated{} },
	TypeBodyAbort:      func() Msg { return &BodyAbort{} },
	TypeCommitPart:     func() Msg { return &CommitPart{} },
	TypeCommit:         func() Msg { return &Commit{} },
	TypeCommitted:      func() Msg { return &Committed{} },
	TypeInject:         func() Msg { return &Inject{} },
	TypeInjected:       func() Msg { return &Injected{} },
	TypeScheduled:      func() Msg { return &Scheduled{} },
	TypeGone:           func() Msg { return &Gone{} },
	TypeLoadAll:        func() Msg { return &LoadAll{} },
	TypeAttempt:        func() Msg { return &Attempt{} },
	TypeExpire:         func() Msg { return &Expire{} },
	TypeRemove:         func() Msg { return &Remove{} },
	TypeSuspend:        func() Msg { return &Suspend{} },
	TypeDelayed:        func() Msg { return &Delayed{} },
	TypeHeld:           func() Msg { return &Held{} },
	TypeReleased:       func() Msg { return &Released{} },
	TypeTransfer:       func() Msg { return &Transfer{} },
	TypeBodyOpen:       func() Msg { return &BodyOpen{} },
	TypeBody:           func() Msg { return &Body{} },
	TypeResults:        func() Msg { return &Results{} },
	TypeHold:           func() Msg { return &Hold{} },
	TypeRelease:        func() Msg { return &Release{} },
	TypeDNSQuery:       func() Msg { return &DNSQuery{} },
	TypeDNSAnswer:      func() Msg { return &DNSAnswer{} },
	TypeUserbaseQuery:  func() Msg { return &UserbaseQuery{} },
	TypeDeliverRun:     func() Msg { return &DeliverRun{} },
	TypeDeliverResult:  func() Msg { return &DeliverResult{} },
	TypeStatsGet:       func() Msg { return &StatsGet{} },
	TypeStats:          func() Msg { return &Stats{} },
	TypeQueueList:      func() Msg { return &QueueList{} },
	TypeQueueListing:   func() Msg { return &QueueListing{} },
	TypeEnvelopeGet:    func() Msg { return &EnvelopeGet{} },
	TypeSchedGet:       func() Msg { return &SchedGet{} },
	TypeSchedStates:    func() Msg { return &SchedStates{} },
	TypeSchedCommand:   func() Msg { return &SchedCommand{} },
	TypeCount:          func() Msg { return &Count{} },
	TypeSessionOpen:    func() Msg { return &SessionOpen{} },
	TypeSessionOpened:  func() Msg { return &SessionOpened{} },
	TypeTableUpdate:    func() Msg { return &TableUpdate{} },
	TypeShow:           func() Msg { return &Show{} },
	TypeLines:          func() Msg { return &Lines{} },
	TypeExplain:        func() Msg { return &Explain{} },
	TypeExplained:      func() Msg { return &Explained{} },
	TypeRouteCommand:   func() Msg { return &RouteCommand{} },
	TypeInflight:       func() Msg { return &Inflight{} },
	TypeFilterOpen:     func() Msg { return &FilterOpen{} },
	TypeFilterOpened:   func() Msg { return &FilterOpened{} },
	TypeFilterAsk:      func() Msg { return &FilterAsk{} },
	TypeFilterVerdict:  func() Msg { return &FilterVerdict{} },
	TypeFilterEvents:   func() Msg { return &FilterEvents{} },
	TypeFilterLines:    func() Msg { return &FilterLines{} },
	TypeFilterLinesOut: func() Msg { return &FilterLinesOut{} },
	TypeTableChecks:    func() Msg { return &TableChecks{} },
	TypeTableAnswers:   func() Msg { return &TableAnswers{} },
	TypeRetry:          func() Msg { return &Retry{} },
	TypeFilterStart:    func() Msg { return &FilterStart{} },
	TypeFilterStarted:  func() Msg { return &FilterStarted{} },
	TypePrepared:       func() Msg { return &Prepared{} },
	TypeApply:          func() Msg { return &Apply{} },
	TypeApplied:        func() Msg { return &Applied{} },
	TypeTableOpen:      func() Msg { return &TableOpen{} },
	TypeTableOpened:    func() Msg { return &TableOpened{} },
	TypeTableTally:     func() Msg { return &TableTally{} },
	TypeTableTallies:   func() Msg { return &TableTallies{} },
	TypeTableCopy:      func() Msg { return &TableCopy{} },
	TypeTableCopied:    func() Msg { return &TableCopied{} },
	TypeTableStale:     func() Msg { return &TableStale{} },
	TypeGenerations:    func() Msg { return &Generations{} },
	TypeStoreCheck:     func() Msg { return &StoreCheck{} },
	TypeStoreAnswer:    func() Msg { return &StoreAnswer{} },
	TypeReleases:       func() Msg { return &Releases{} },
}

func (t Type) make() Msg {
	if int(t) >= len(kinds) || kinds[t] == nil {
		return nil
	}
	return kinds[t]()
}

// Type implements Msg.
func (*Configure) Type() Type { return TypeConfigure }

// Type implements Msg.
func (*PeerLink) Type() Type { return TypePeerLink }

// Type implements Msg.
func (*ListenSocket) Type() Type { return TypeListenSocket }

// Type implements Msg.
func (*Switches) Type() Type { return TypeSwitches }

// Type implements Msg.
func (*Shutdown) Type() Type { return TypeShutdown }

// Type implements Msg.
func (*Ready) Type() Type { return TypeReady }

// Type implements Msg.
func (*Fatal) Type() Type { return TypeFatal }

// Type implements Msg.
func (*Violation) Type() Type { return TypeViolation }

// Type implements Msg.
func (*UserQuery) Type() Type { return TypeUserQuery }

// Type implements Msg.
func (*UserInfo) Type() Type { return TypeUserInfo }

// Type implements Msg.
func (*ForwardOpen) Type() Type { return TypeForwardOpen }

// Type implements Msg.
func (*ForwardFile) Type() Type { return TypeForwardFile }

// Type implements Msg.
func (*SystemAuth) Type() Type { return TypeSystemAuth }

// Type implements Msg.
func (*AuthResult) Type() Type { return TypeAuthResult }

// Type implements Msg.
func (*DeliverStart) Type() Type { return TypeDeliverStart }

// Type implements Msg.
func (*DeliverStarted) Type() Type { return TypeDeliverStarted }

// Type implements Msg.
func (*Reload) Type() Type { return TypeReload }

// Type implements Msg.
func (*Switch) Type() Type { return TypeSwitch }

// Type implements Msg.
func (*StatusGet) Type() Type { return TypeStatusGet }

// Type implements Msg.
func (*Done) Type() Type { return TypeDone }

// Type implements Msg.
func (*TableQuery) Type() Type { return TypeTableQuery }

// Type implements Msg.
func (*TableAnswer) Type() Type { return TypeTableAnswer }

// Type implements Msg.
func (*Sign) Type() Type { return TypeSign }

// Type implements Msg.
func (*Signature) Type() Type { return TypeSignature }

// Type implements Msg.
func (*ClientLookup) Type() Type { return TypeClientLookup }

// Type implements Msg.
func (*ClientName) Type() Type { return TypeClientName }

// Type implements Msg.
func (*RcptCheck) Type() Type { return TypeRcptCheck }

// Type implements Msg.
func (*RcptAnswer) Type() Type { return TypeRcptAnswer }

// Type implements Msg.
func (*RcptMore) Type() Type { return TypeRcptMore }

// Type implements Msg.
func (*AuthCheck) Type() Type { return TypeAuthCheck }

// Type implements Msg.
func (*SenderCheck) Type() Type { return TypeSenderCheck }

// Type implements Msg.
func (*ReserveIDs) Type() Type { return TypeReserveIDs }

// Type implements Msg.
func (*ReservedIDs) Type() Type { return TypeReservedIDs }

// Type implements Msg.
func (*BodyCreate) Type() Type { return TypeBodyCreate }

// Type implements Msg.
func (*BodyCreated) Type() Type { return TypeBodyCreated }

// Type implements Msg.
func (*BodyAbort) Type() Type { return TypeBodyAbort }

// Type implements Msg.
func (*CommitPart) Type() Type { return TypeCommitPart }

// Type implements Msg.
func (*Commit) Type() Type { return TypeCommit }

// Type implements Msg.
func (*Committed) Type() Type { return TypeCommitted }

// Type implements Msg.
func (*Inject) Type() Type { return TypeInject }

// Type implements Msg.
func (*Injected) Type() Type { return TypeInjected }

// Type implements Msg.
func (*Scheduled) Type() Type { return TypeScheduled }

// Type implements Msg.
func (*Gone) Type() Type { return TypeGone }

// Type implements Msg.
func (*LoadAll) Type() Type { return TypeLoadAll }

// Type implements Msg.
func (*Attempt) Type() Type { return TypeAttempt }

// Type implements Msg.
func (*Expire) Type() Type { return TypeExpire }

// Type implements Msg.
func (*Remove) Type() Type { return TypeRemove }

// Type implements Msg.
func (*Suspend) Type() Type { return TypeSuspend }

// Type implements Msg.
func (*Delayed) Type() Type { return TypeDelayed }

// Type implements Msg.
func (*Held) Type() Type { return TypeHeld }

// Type implements Msg.
func (*Released) Type() Type { return TypeReleased }

// Type implements Msg.
func (*Transfer) Type() Type { return TypeTransfer }

// Type implements Msg.
func (*BodyOpen) Type() Type { return TypeBodyOpen }

// Type implements Msg.
func (*Body) Type() Type { return TypeBody }

// Type implements Msg.
func (*Results) Type() Type { return TypeResults }

// Type implements Msg.
func (*Hold) Type() Type { return TypeHold }

// Type implements Msg.
func (*Release) Type() Type { return TypeRelease }

// Type implements Msg.
func (*DNSQuery) Type() Type { return TypeDNSQuery }

// Type implements Msg.
func (*DNSAnswer) Type() Type { return TypeDNSAnswer }

// Type implements Msg.
func (*UserbaseQuery) Type() Type { return TypeUserbaseQuery }

// Type implements Msg.
func (*DeliverRun) Type() Type { return TypeDeliverRun }

// Type implements Msg.
func (*DeliverResult) Type() Type { return TypeDeliverResult }

// Type implements Msg.
func (*StatsGet) Type() Type { return TypeStatsGet }

// Type implements Msg.
func (*Stats) Type() Type { return TypeStats }

// Type implements Msg.
func (*QueueList) Type() Type { return TypeQueueList }

// Type implements Msg.
func (*QueueListing) Type() Type { return TypeQueueListing }

// Type implements Msg.
func (*EnvelopeGet) Type() Type { return TypeEnvelopeGet }

// Type implements Msg.
func (*SchedGet) Type() Type { return TypeSchedGet }

// Type implements Msg.
func (*SchedStates) Type() Type { return TypeSchedStates }

// Type implements Msg.
func (*SchedCommand) Type() Type { return TypeSchedCommand }

// Type implements Msg.
func (*Count) Type() Type { return TypeCount }

// Type implements Msg.
func (*SessionOpen) Type() Type { return TypeSessionOpen }

// Type implements Msg.
func (*SessionOpened) Type() Type { return TypeSessionOpened }

// Type implements Msg.
func (*TableUpdate) Type() Type { return TypeTableUpdate }

// Type implements Msg.
func (*Show) Type() Type { return TypeShow }

// Type implements Msg.
func (*Lines) Type() Type { return TypeLines }

// Type implements Msg.
func (*RouteCommand) Type() Type { return TypeRouteCommand }

// Type implements Msg.
func (*Explain) Type() Type { return TypeExplain }

// Type implements Msg.
func (*Explained) Type() Type { return TypeExplained }

// Type implements Msg.
func (*Inflight) Type() Type { return TypeInflight }

// Type implements Msg.
func (*FilterOpen) Type() Type { return TypeFilterOpen }

// Type implements Msg.
func (*FilterOpened) Type() Type { return TypeFilterOpened }

// Type implements Msg.
func (*FilterAsk) Type() Type { return TypeFilterAsk }

// Type implements Msg.
func (*FilterVerdict) Type() Type { return TypeFilterVerdict }

// Type implements Msg.
func (*FilterEvents) Type() Type { return TypeFilterEvents }

// Type implements Msg.
func (*FilterLines) Type() Type { return TypeFilterLines }

// Type implements Msg.
func (*FilterLinesOut) Type() Type { return TypeFilterLinesOut }

// Type implements Msg.
func (*TableChecks) Type() Type { return TypeTableChecks }

// Type implements Msg.
func (*TableAnswers) Type() Type { return TypeTableAnswers }

// Type implements Msg.
func (*Retry) Type() Type { return TypeRetry }

// Type implements Msg.
func (*FilterStart) Type() Type { return TypeFilterStart }

// Type implements Msg.
func (*FilterStarted) Type() Type { return TypeFilterStarted }

// Type implements Msg.
func (*Prepared) Type() Type { return TypePrepared }

// Type implements Msg.
func (*Apply) Type() Type { return TypeApply }

// Type implements Msg.
func (*Applied) Type() Type { return TypeApplied }

// Type implements Msg.
func (*TableOpen) Type() Type { return TypeTableOpen }

// Type implements Msg.
func (*TableOpened) Type() Type { return TypeTableOpened }

// Type implements Msg.
func (*TableTally) Type() Type { return TypeTableTally }

// Type implements Msg.
func (*TableTallies) Type() Type { return TypeTableTallies }

// Type implements Msg.
func (*TableCopy) Type() Type { return TypeTableCopy }

// Type implements Msg.
func (*TableCopied) Type() Type { return TypeTableCopied }

// Type implements Msg.
func (*TableStale) Type() Type { return TypeTableStale }

// Type implements Msg.
func (*Generations) Type() Type { return TypeGenerations }

// Type implements Msg.
func (*StoreCheck) Type() Type { return TypeStoreCheck }

// Type implements Msg.
func (*StoreAnswer) Type() Type { return TypeStoreAnswer }

// Type implements Msg.
func (*Releases) Type() Type { return TypeReleases }
