// The language since 6.4: action and match. One parse reads one statement; the
// tree is built as written, and check.go says what it means.

%{
package parser
%}

%union {
	tok  *token
	toks []*token
	opt  *option
	opts []*option
	tab  *tableExpr
	vals *valueList
	node node
	flag bool
}

%token <tok> mNL mSTRING mNUMBER mARROW
%token <tok> mACTION mADMD mALIAS mANY mAUTH mAUTHOPTIONAL mBACKUP mBOUNCE mBYPASS
%token <tok> mCA mCERT mCHAIN mCHROOT mCIPHERS mCOMMIT mCOMPRESSION mCONNECT
%token <tok> mDATA mDATALINE mDHE mDISCONNECT mDOMAIN mEHLO mENCRYPTION mEXPANDONLY
%token <tok> mFCRDNS mFILTER mFOR mFORWARDONLY mFROM mGROUP mHELO mHELOSRC mHOST
%token <tok> mHOSTNAME mHOSTNAMES mINCLUDE mINET4 mINET6 mJUNK mKEY mLIMIT mLISTEN
%token <tok> mLMTP mLOCAL mMAILFROM mMAILDIR mMASKSRC mMASQUERADE mMATCH mMAXDEFERRED
%token <tok> mBYSENDER mMAXMESSAGESIZE mMBOX mMDA mMTA mMX mNODSN mNOVERIFY mNOOP mON mPHASE
%token <tok> mPKI mPORT mPROC mPROCEXEC mPROTOCOLS mPROXYV2 mQUEUE mQUIT mRCPTTO
%token <tok> mRDNS mRECEIVEDAUTH mRECIPIENT mREGEX mREJECT mRELAY mREPORT mREWRITE
%token <tok> mRSET mSCHEDULER mSENDERS mSMTP mSMTPIN mSMTPOUT mSMTPS mSOCKET mSRC mSRS
%token <tok> mSUBADDRDELIM mTABLE mTAG mTAGGED mTLS mTLSREQUIRE mTTL mUSER mUSERBASE
%token <tok> mVERIFY mVIRTUAL mWARNINTERVAL mWRAPPER
%token <tok> mLOGCONVERSATION mONFAILURE mPREFER mREPAIRNEWLINES mRESOLVER mTIMEOUT mWITHOUT
%token <tok> mVERIFYRCPT mXORIGINALTO
%token <tok> mFULLMESSAGE mQUADRATIC mRETRY mHOLD

%type <node> stmt action match filter listen table
%type <tok>  ttl phase silent telling port one_of_limit kind
%type <toks> delays names limits numbers words
%type <opt>  filterpatience mopt ifopt sockopt filteropt lopt ropt procopt pkiopt cond retry
%type <opts> patience mopts ifopts sockopts lopts storeopts ropts procopts pkiopts
%type <tab>  tables opt_tables
%type <vals> values strings pairs
%type <flag> not regex

%start line

%%

line:
	stmt mNL { accepted(modernlex, $1) }
	;

stmt:
	mINCLUDE mSTRING                { $$ = &includeStmt{path: $2} }
	| mSTRING '=' mSTRING           { $$ = &macroStmt{name: $1, value: $3} }
	| mRESOLVER '=' mSTRING         { $$ = &macroStmt{name: $1, value: $3} }
	| table
	| listen
	| action
	| match
	| filter
	| mPROC mSTRING mSTRING procopts { $$ = &procStmt{name: $2, command: $3, opts: $4} }
	| mPKI mSTRING pkiopts          { $$ = &pkiStmt{name: $2, opts: $3} }
	| mCA mSTRING mCERT mSTRING     { $$ = &caStmt{name: $2, cert: $4} }
	| mADMD mSTRING                 { $$ = setting("admd", $2) }
	| mBOUNCE mWARNINTERVAL delays  { $$ = setting("bounce warn-interval", $3...) }
	| mBOUNCE mFULLMESSAGE          { $$ = setting("bounce full-message") }
	| mBOUNCE mFROM mSTRING         { $$ = setting("bounce from", $3) }
	| mMDA mWRAPPER mSTRING mSTRING { $$ = setting("mda wrapper", $3, $4) }
	| mMDA mLIMIT numbers           { $$ = limits("mda limit", nil, $3) }
	| mMTA mMAXDEFERRED mNUMBER     { $$ = setting("mta max-deferred", $3) }
	| mMTA mTLS tables              { $$ = tableSetting("mta tls", $3) }
	| mMTA mLIMIT limits            { $$ = limits("mta limit", nil, $3) }
	| mMTA mLIMIT mFOR mDOMAIN mSTRING limits
	                                { $$ = limits("mta limit", $5, $6) }
	| mRESOLVER delays              { $$ = setting("resolver", $2...) }
	| mQUEUE mCOMPRESSION           { $$ = setting("queue compression") }
	| mQUEUE mENCRYPTION            { $$ = setting("queue encryption") }
	| mQUEUE mENCRYPTION mSTRING    { $$ = setting("queue encryption", $3) }
	| mQUEUE mRETRY kind delays     { $$ = retrySetting($3, $4, "") }
	| mQUEUE mRETRY kind mSTRING mQUADRATIC
	                                { $$ = retrySetting($3, []*token{$4}, $5.text) }
	| mQUEUE mTTL mSTRING           { $$ = setting("queue ttl", $3) }
	| mSCHEDULER mLIMIT numbers     { $$ = limits("scheduler limit", nil, $3) }
	| mSMTP mLIMIT numbers          { $$ = limits("smtp limit", nil, $3) }
	| mSMTP mCIPHERS mSTRING        { $$ = setting("smtp ciphers", $3) }
	| mSMTP mMAXMESSAGESIZE mNUMBER { $$ = setting("smtp max-message-size", $3) }
	| mSMTP mMAXMESSAGESIZE mSTRING { $$ = setting("smtp max-message-size", $3) }
	| mSMTP mSUBADDRDELIM mSTRING   { $$ = setting("smtp sub-addr-delim", $3) }
	| mSRS mKEY mSTRING             { $$ = setting("srs key", $3) }
	| mSRS mKEY mBACKUP mSTRING     { $$ = setting("srs key backup", $4) }
	| mSRS mTTL mSTRING             { $$ = setting("srs ttl", $3) }
	;

delays:
	mSTRING                         { $$ = []*token{$1} }
	| delays ',' mSTRING            { $$ = append($1, $3) }
	;

kind: mMDA | mMTA ;

retry:
	mRETRY delays                   { $$ = optWords($1, "", $2) }
	| mRETRY mSTRING mQUADRATIC     { $$ = optWords($1, $3.text, []*token{$2}) }
	;

limits:
	/* none */                      { $$ = nil }
	| limits one_of_limit           { $$ = append($1, $2) }
	| limits mSTRING mNUMBER        { $$ = append($1, $2, $3) }
	| limits mPREFER one_of_limit   { $$ = append($1, $2, $3) }
	;

one_of_limit: mINET4 | mINET6 ;

numbers:
	/* none */                      { $$ = nil }
	| numbers mSTRING mNUMBER       { $$ = append($1, $2, $3) }
	;

procopts:
	/* none */                      { $$ = nil }
	| procopts procopt              { $$ = append($1, $2) }
	;

procopt:
	mUSER mSTRING                   { $$ = opt($1, $2) }
	| mGROUP mSTRING                { $$ = opt($1, $2) }
	| mCHROOT mSTRING               { $$ = opt($1, $2) }
	| filterpatience
	;

filterpatience:
	mTIMEOUT mSTRING                { $$ = opt($1, $2) }
	| mONFAILURE mSTRING            { $$ = opt($1, $2) }
	;

patience:
	/* none */                      { $$ = nil }
	| patience filterpatience       { $$ = append($1, $2) }
	;

pkiopts:
	/* none */                      { $$ = nil }
	| pkiopts pkiopt                { $$ = append($1, $2) }
	;

pkiopt:
	mCERT mSTRING                   { $$ = opt($1, $2) }
	| mKEY mSTRING                  { $$ = opt($1, $2) }
	| mDHE mSTRING                  { $$ = opt($1, $2) }
	;

table:
	mTABLE mSTRING mSTRING          { $$ = &tableStmt{name: $2, backend: $3} }
	| mTABLE mSTRING '{' values '}' { $$ = &tableStmt{name: $2, values: $4} }
	;

values:
	nls strings nls                 { $$ = $2 }
	| nls pairs nls                 { $$ = $2 }
	;

strings:
	mSTRING                         { $$ = newValues($1) }
	| strings nls mSTRING           { $$ = $1.add($3) }
	| strings ',' nls mSTRING       { $$ = $1.add($4) }
	;

pairs:
	mSTRING eq mSTRING              { $$ = newPairs($1, $3) }
	| pairs nls mSTRING eq mSTRING  { $$ = $1.addPair($3, $5) }
	| pairs ',' nls mSTRING eq mSTRING { $$ = $1.addPair($4, $6) }
	;

eq: '=' | mARROW ;

nls:
	/* none */
	| nls mNL
	;

tables:
	mSTRING                         { $$ = &tableExpr{pos: $1.pos, one: $1} }
	| '{' values '}'                { $$ = &tableExpr{pos: $2.pos(), values: $2} }
	| '<' mSTRING '>'               { $$ = &tableExpr{pos: $2.pos, ref: $2} }
	;

opt_tables:
	/* none */                      { $$ = nil }
	| tables
	;

names:
	mSTRING                         { $$ = []*token{$1} }
	| names nls mSTRING             { $$ = append($1, $3) }
	| names ',' nls mSTRING         { $$ = append($1, $4) }
	;

filteropt:
	mFILTER mSTRING                 { $$ = opt($1, $2) }
	| mFILTER '{' nls names nls '}' { $$ = &option{pos: $1.pos, key: $1.text, list: $4} }
	;

words:
	mSTRING                         { $$ = []*token{$1} }
	| '{' nls names nls '}'         { $$ = $3 }
	;

listen:
	mLISTEN mON mSOCKET sockopts    { $$ = &listenStmt{on: $3, socket: true, opts: $4} }
	| mLISTEN mON mSTRING ifopts    { $$ = &listenStmt{on: $3, opts: $4} }
	;

sockopts:
	/* none */                      { $$ = nil }
	| sockopts sockopt              { $$ = append($1, $2) }
	;

sockopt:
	filteropt
	| mMASKSRC                      { $$ = opt($1, nil) }
	| mNODSN                        { $$ = opt($1, nil) }
	| mTAG mSTRING                  { $$ = opt($1, $2) }
	;

ifopts:
	/* none */                      { $$ = nil }
	| ifopts ifopt                  { $$ = append($1, $2) }
	;

ifopt:
	filteropt
	| mINET4                        { $$ = opt($1, nil) }
	| mINET6                        { $$ = opt($1, nil) }
	| mPORT port                    { $$ = opt($1, $2) }
	| mSMTPS                        { $$ = opt($1, nil) }
	| mSMTPS mVERIFY                { $$ = optSub($1, $2) }
	| mTLS                          { $$ = opt($1, nil) }
	| mTLSREQUIRE                   { $$ = opt($1, nil) }
	| mTLSREQUIRE mVERIFY           { $$ = optSub($1, $2) }
	| mCIPHERS mSTRING              { $$ = opt($1, $2) }
	| mPROTOCOLS mSTRING            { $$ = opt($1, $2) }
	| mPKI mSTRING                  { $$ = opt($1, $2) }
	| mCA mSTRING                   { $$ = opt($1, $2) }
	| mAUTH opt_tables              { $$ = optTable($1, $2) }
	| mAUTHOPTIONAL opt_tables      { $$ = optTable($1, $2) }
	| mTAG mSTRING                  { $$ = opt($1, $2) }
	| mHOSTNAME mSTRING             { $$ = opt($1, $2) }
	| mHOSTNAMES tables             { $$ = optTable($1, $2) }
	| mSENDERS tables               { $$ = optTable($1, $2) }
	| mSENDERS tables mMASQUERADE   { $$ = optTable($1, $2); $$.sub = $3.text }
	| mMASKSRC                      { $$ = opt($1, nil) }
	| mRECEIVEDAUTH                 { $$ = opt($1, nil) }
	| mNODSN                        { $$ = opt($1, nil) }
	| mPROXYV2                      { $$ = opt($1, nil) }
	| mPROXYV2 mFROM words          { $$ = optWords($1, $2.text, $3) }
	| mREPAIRNEWLINES               { $$ = opt($1, nil) }
	| mLOGCONVERSATION              { $$ = opt($1, nil) }
	| mWITHOUT words                { $$ = optWords($1, "", $2) }
	;

port: mSTRING | mSMTP | mSMTPS | mNUMBER ;

action:
	mACTION mSTRING mMBOX lopts ttl { $$ = newAction($2, $3, nil, $4, $5) }
	| mACTION mSTRING mMAILDIR lopts ttl { $$ = newAction($2, $3, nil, $4, $5) }
	| mACTION mSTRING mMAILDIR mSTRING lopts ttl { $$ = newAction($2, $3, $4, $5, $6) }
	| mACTION mSTRING mMAILDIR mJUNK lopts ttl
	                                { $$ = newAction($2, $3, nil, before(opt($4, nil), $5), $6) }
	| mACTION mSTRING mMAILDIR mSTRING mJUNK lopts ttl
	                                { $$ = newAction($2, $3, $4, before(opt($5, nil), $6), $7) }
	| mACTION mSTRING mLMTP mSTRING storeopts ttl { $$ = newAction($2, $3, $4, $5, $6) }
	| mACTION mSTRING mMDA mSTRING lopts ttl { $$ = newAction($2, $3, $4, $5, $6) }
	| mACTION mSTRING mFORWARDONLY lopts ttl { $$ = newAction($2, $3, nil, $4, $5) }
	| mACTION mSTRING mEXPANDONLY lopts ttl { $$ = newAction($2, $3, nil, $4, $5) }
	| mACTION mSTRING mRELAY ropts ttl { $$ = newAction($2, $3, nil, $4, $5) }
	;

ttl:
	/* none */                      { $$ = nil }
	| mTTL mSTRING                  { $$ = $2 }
	;

lopts:
	/* none */                      { $$ = nil }
	| lopts lopt                    { $$ = append($1, $2) }
	;

lopt:
	retry
	| mUSER mSTRING                   { $$ = opt($1, $2) }
	| mALIAS tables                 { $$ = optTable($1, $2) }
	| mVIRTUAL tables               { $$ = optTable($1, $2) }
	| mUSERBASE tables              { $$ = optTable($1, $2) }
	| mWRAPPER mSTRING              { $$ = opt($1, $2) }
	| mXORIGINALTO                  { $$ = opt($1, nil) }
	;

storeopts:
	/* none */                      { $$ = nil }
	| storeopts lopt                { $$ = append($1, $2) }
	| storeopts mRCPTTO             { $$ = append($1, opt($2, nil)) }
	| storeopts mVERIFYRCPT         { $$ = append($1, opt($2, nil)) }
	;

ropts:
	/* none */                      { $$ = nil }
	| ropts ropt                    { $$ = append($1, $2) }
	;

ropt:
	filteropt
	| retry
	| mHELO mSTRING                 { $$ = opt($1, $2) }
	| mHELOSRC tables               { $$ = optTable($1, $2) }
	| mPKI mSTRING                  { $$ = opt($1, $2) }
	| mCA mSTRING                   { $$ = opt($1, $2) }
	| mCIPHERS mSTRING              { $$ = opt($1, $2) }
	| mPROTOCOLS mSTRING            { $$ = opt($1, $2) }
	| mSRC tables                   { $$ = optTable($1, $2) }
	| mMAILFROM mSTRING             { $$ = opt($1, $2) }
	| mBACKUP                       { $$ = opt($1, nil) }
	| mBACKUP mMX mSTRING           { $$ = optSub($1, $2); $$.arg = $3 }
	| mHOST tables                  { $$ = optTable($1, $2) }
	| mDOMAIN tables                { $$ = optTable($1, $2) }
	| mBYSENDER tables                { $$ = optTable($1, $2) }
	| mTLS                          { $$ = opt($1, nil) }
	| mTLS mNOVERIFY                { $$ = optSub($1, $2) }
	| mAUTH tables                  { $$ = optTable($1, $2) }
	| mSRS                          { $$ = opt($1, nil) }
	| mPREFER one_of_limit          { $$ = optSub($1, $2) }
	| mHOLD                         { $$ = opt($1, nil) }
	| mHOLD delays                  { $$ = optWords($1, "", $2) }
	;

match:
	mMATCH mopts mREJECT            { $$ = &matchStmt{opts: $2, reject: true} }
	| mMATCH mopts mREJECT mSTRING  { $$ = &matchStmt{opts: $2, reject: true, text: $4} }
	| mMATCH mopts mACTION mSTRING  { $$ = &matchStmt{opts: $2, action: $4} }
	;

mopts:
	/* none */                      { $$ = nil }
	| mopts mopt                    { $$ = append($1, $2) }
	;

not:
	/* none */                      { $$ = false }
	| '!'                           { $$ = true }
	;

regex:
	/* none */                      { $$ = false }
	| mREGEX                        { $$ = true }
	;

mopt:
	not mFOR mLOCAL                 { $$ = optMatch($1, $2, $3, false, nil) }
	| not mFOR mANY                 { $$ = optMatch($1, $2, $3, false, nil) }
	| not mFOR mDOMAIN regex tables { $$ = optMatch($1, $2, $3, $4, $5) }
	| not mFOR mRCPTTO regex tables { $$ = optMatch($1, $2, $3, $4, $5) }
	| not mFROM mLOCAL              { $$ = optMatch($1, $2, $3, false, nil) }
	| not mFROM mANY                { $$ = optMatch($1, $2, $3, false, nil) }
	| not mFROM mSOCKET             { $$ = optMatch($1, $2, $3, false, nil) }
	| not mFROM mAUTH opt_tables    { $$ = optMatch($1, $2, $3, false, $4) }
	| not mFROM mAUTH mREGEX tables { $$ = optMatch($1, $2, $3, true, $5) }
	| not mFROM mRDNS opt_tables    { $$ = optMatch($1, $2, $3, false, $4) }
	| not mFROM mRDNS mREGEX tables { $$ = optMatch($1, $2, $3, true, $5) }
	| not mFROM mSRC regex tables   { $$ = optMatch($1, $2, $3, $4, $5) }
	| not mFROM mMAILFROM regex tables { $$ = optMatch($1, $2, $3, $4, $5) }
	| not mTLS                      { $$ = optMatch($1, $2, nil, false, nil) }
	| not mAUTH opt_tables          { $$ = optMatch($1, $2, nil, false, $3) }
	| not mAUTH mREGEX tables       { $$ = optMatch($1, $2, nil, true, $4) }
	| not mHELO regex tables        { $$ = optMatch($1, $2, nil, $3, $4) }
	| not mMAILFROM regex tables    { $$ = optMatch($1, $2, nil, $3, $4) }
	| not mRCPTTO regex tables      { $$ = optMatch($1, $2, nil, $3, $4) }
	| not mTAG regex tables         { $$ = optMatch($1, $2, nil, $3, $4) }
	;

filter:
	mFILTER mSTRING mPROC mSTRING patience
	                                { $$ = &filterStmt{name: $2, kind: $3.text, arg: $4, opts: $5} }
	| mFILTER mSTRING mPROCEXEC mSTRING procopts
	                                { $$ = &filterStmt{name: $2, kind: $3.text, arg: $4, opts: $5} }
	| mFILTER mSTRING mCHAIN '{' nls names nls '}'
	                                { $$ = &filterStmt{name: $2, kind: $3.text, chain: $6} }
	| mFILTER mSTRING mPHASE phase mMATCH cond silent
	                                { $$ = &filterStmt{name: $2, kind: $3.text, arg: $4, cond: $6, decision: $7} }
	| mFILTER mSTRING mPHASE phase mMATCH cond telling mSTRING
	                                { $$ = &filterStmt{name: $2, kind: $3.text, arg: $4, cond: $6, decision: $7, text: $8} }
	;

phase:
	mCONNECT | mHELO | mEHLO | mAUTH | mMAILFROM | mRCPTTO | mDATA | mCOMMIT ;

silent: mJUNK | mBYPASS ;

telling: mREJECT | mDISCONNECT | mREWRITE | mREPORT ;

cond:
	not mFCRDNS                     { $$ = optMatch($1, $2, nil, false, nil) }
	| not mRDNS opt_tables          { $$ = optMatch($1, $2, nil, false, $3) }
	| not mRDNS mREGEX tables       { $$ = optMatch($1, $2, nil, true, $4) }
	| not mAUTH opt_tables          { $$ = optMatch($1, $2, nil, false, $3) }
	| not mAUTH mREGEX tables       { $$ = optMatch($1, $2, nil, true, $4) }
	| not mSRC regex tables         { $$ = optMatch($1, $2, nil, $3, $4) }
	| not mHELO regex tables        { $$ = optMatch($1, $2, nil, $3, $4) }
	| not mMAILFROM regex tables    { $$ = optMatch($1, $2, nil, $3, $4) }
	| not mRCPTTO regex tables      { $$ = optMatch($1, $2, nil, $3, $4) }
	;
